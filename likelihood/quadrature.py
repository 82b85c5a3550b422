"""The times at which a bound evaluates the denoising loss, and their weights: an integral, or a chain of steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE, PerDimensionVP
from scorefield.sde_lib.broadcast import expand, one_each
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.sde_lib.sde import Noise, check_one_level, check_path
from scorefield.solvers import Schedule, grids

NO_DRAWS = "expected a number of draws in continuous time, got None: pass draws=32, or steps=1000"


@dataclass(frozen=True)
class LogSNRIntegral:
    """int E|eps_hat - eps|^2 d lambda from t_min to t_max, by stratified times that are uniform in the log-SNR.

    Args:
        sde: the path.
        density: of the times over the log-SNR, if it is not uniform. It changes the variance and not the mean.
    """

    sde: SDE
    density: LevelDensity | None = None

    @property
    def start(self) -> float:
        """The time next to the data."""
        return self.sde.t_min

    @property
    def end(self) -> float:
        """The time next to the prior."""
        return self.sde.t_max

    @property
    def variance_cost(self) -> float:
        """Nats for each dimension that the steps' variances cost: none in continuous time."""
        return 0.0

    def count(self, draws: int | None) -> int:
        """The number of `points`."""
        return draws or 0

    def points(self, draws: int | None, uniform: Noise, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the draws, a time (B,) and its weight (B,); the mean over draws is the integral.

        Raises:
            ValueError: if the number of draws is None.
        """
        if draws is None:
            raise ValueError(NO_DRAWS)
        high, low = (float(self.sde.log_snr(t)) for t in (self.start, self.end))
        for share in _strata(draws, uniform, like):
            if self.density is None:
                yield self.sde.time(high - (high - low) * share), torch.full_like(share, high - low)
                continue
            position = self.density.position(share)
            yield self.sde.time(high - (high - low) * position), (high - low) * self.density.weight(position)


@dataclass(frozen=True)
class LineIntegral(LogSNRIntegral):
    """sum_d int E(eps_hat_d - eps_d)^2 d lambda_d along a path in R^D, by stratified times that are uniform.

    A density is one over the straight line between the ends, so over time.

    Sahoo et al. 2024, Section 3.3. The value depends on the way between the ends.
    """

    sde: PerDimensionVP

    def points(self, draws: int | None, uniform: Noise, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the draws, a time (B,) and its weights (B, *D); see `LogSNRIntegral.points`."""
        if draws is None:
            raise ValueError(NO_DRAWS)
        duration = self.sde.t_max - self.sde.t_min
        for share in _strata(draws, uniform, like):
            position = share if self.density is None else self.density.position(share)
            weight = 1.0 if self.density is None else self.density.weight(position)
            t = self.sde.t_min + duration * position
            slope = self.sde.slope(t)
            yield t, -duration * expand(weight, slope) * slope


def integral(sde: SDE, density: LevelDensity | None = None) -> LogSNRIntegral:
    """The integral of a path: over one log-SNR, or along a line in R^D."""
    check_path(sde)
    return LineIntegral(sde, density) if isinstance(sde, PerDimensionVP) else LogSNRIntegral(sde, density)


@dataclass(frozen=True)
class ChainSum:
    """sum_i weight_i E|eps_hat - eps|^2 over the T steps of a chain, all of them or a stratified random choice.

    Args:
        ts: the chain's times, (T + 1,), rising.
        weight: of each step, (T,).
        probability: with which a step is drawn, (T,). Half follows its weight, half its share of the log-SNR.
        variance_cost: nats for each dimension that the steps' variances cost.
        first_std: sqrt(beta_tilde) of the step next to the data, ().
    """

    ts: Tensor
    weight: Tensor
    probability: Tensor
    variance_cost: float
    first_std: Tensor

    @classmethod
    def of(cls, sde: SDE, steps: int | None, ts: Tensor | None, x0: Tensor, variance: str = "small") -> "ChainSum":
        """The chain of `steps` equal steps in time, or on the grid `ts`.

        Raises:
            ValueError: if the grid has fewer than two times, or another number of steps than `steps`.
        """
        check_one_level(sde, "a chain of steps", "use elbo in continuous time")
        ts = _chain_times(sde, steps, ts, x0)
        log_snr, log_sigma = sde.log_snr(ts), sde.log_sigma(ts)
        fall = log_snr[:-1] - log_snr[1:]
        log_ratio = 2 * (log_sigma[:-1] - log_sigma[1:])
        first_std = (log_sigma[0] + torch.log(-torch.expm1(-fall[0])) / 2).exp()
        weight, variance_cost = torch.expm1(fall), 0.0
        if variance == "large":
            weight = weight * log_ratio.exp()
            variance_cost = float((torch.expm1(log_ratio) - log_ratio).sum()) / 2
        probability = (weight / weight.sum() + fall / fall.sum()) / 2
        return cls(ts, weight, probability, variance_cost, first_std)

    @property
    def start(self) -> float:
        """The time next to the data."""
        return float(self.ts[0])

    @property
    def end(self) -> float:
        """The time next to the prior."""
        return float(self.ts[-1])

    def count(self, draws: int | None) -> int:
        """The number of `points`."""
        return len(self.weight) if draws is None else min(draws, len(self.weight))

    def points(self, draws: int | None, uniform: Noise, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the draws, a time (B,) and its weight (B,); the mean over draws is the sum.

        Every step is taken once if `draws` is None or at least T.
        """
        steps, noisier = len(self.weight), self.ts[1:].to(like)
        if draws is None or draws >= steps:
            for t, weight in zip(noisier, (self.weight / (1 / steps)).to(like), strict=True):
                yield t.expand_as(like), weight.expand_as(like)
            return
        weight, edges = (self.weight / self.probability).to(like), self.probability.cumsum(0).to(like)
        for share in _strata(draws, uniform, like):
            i = torch.searchsorted(edges, share, right=True).clamp(max=steps - 1)
            yield noisier[i], weight[i]


def _strata(draws: int, uniform: Noise, like: Tensor) -> Iterator[Tensor]:
    """Uniform numbers (B,), one within each of `draws` equal parts of [0, 1)."""
    for i in range(draws):
        yield (i + one_each(uniform(like), len(like), "the uniform numbers")) / draws


def _chain_times(sde: SDE, steps: int | None, ts: Tensor | None, x0: Tensor) -> Tensor:
    """The chain's times, rising, float64 on the CPU."""
    if ts is None:
        assert steps is not None
        ts = grids.uniform(sde, steps)
    elif steps is not None and steps != len(ts) - 1:
        raise ValueError(f"expected {steps + 1} times for {steps} steps, got {len(ts)}: pass steps or ts, not both")
    if len(ts) < 2:
        raise ValueError(f"expected a grid of at least two times, got {len(ts)}: make one with solvers.grids")
    return Schedule(sde, ts, x0).ts.sort().values
