"""When to train: functions `(sde, n, generator) -> t (n,)`, float64, within [t_min, t_max].

`uniform`, `stratified`, `log_normal` and `discrete` decide which noise levels count. An `ImportanceTimes` does not: its
weights give the loss the mean that it has with `log_snr`, and another variance.
"""

import abc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import precise
from scorefield.sde_lib.level_density import LevelDensity, bin_of, log_snr_ends, position_of

Times = Callable[[SDE, int, Generator | None], Tensor]

BINS, FLOOR = 64, 0.02  # of a measured density: its bins, and its uniform share


def uniform(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
    """Independent and uniform in time."""
    return _between(sde, _uniforms(n, generator))


def stratified(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
    """Uniform in time, one in each n-th of the path: the same mean with less noise.

    Kingma et al. 2021, Appendix I.1.
    """
    return _between(sde, _strata(n, generator))


class ImportanceTimes(abc.ABC):
    """Stratified times of a density p over the log-SNR, and the weights that undo it.

        t = time(lambda),   lambda ~ p,   weight = 1 / ((lambda_max - lambda_min) p(lambda))

    The mean of weight times loss is the mean over a uniform log-SNR. With the weighting `simple` that is the
    continuous ELBO, up to a factor (Kingma et al. 2021, Eq. 12; Song, Durkan et al. 2021, Section 5.1).
    """

    @abc.abstractmethod
    def position(self, sde: SDE, u: Tensor) -> Tensor:
        """The share of the log-SNR's range that has passed, from data to noise, for u (n,) uniform in [0, 1)."""

    @abc.abstractmethod
    def weight_at(self, sde: SDE, position: Tensor) -> Tensor:
        """1 over the density of the position, (n,)."""

    def __call__(self, sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
        """The times, (n,)."""
        high, low = log_snr_ends(sde)
        return sde.time(high + (low - high) * self.position(sde, _strata(n, generator)))

    def weight(self, sde: SDE, t: Tensor) -> Tensor:
        """The weight of each time, (n,)."""
        return self.weight_at(sde, position_of(sde, sde.log_snr(t)))


class LogSNR(ImportanceTimes):
    """Uniform in the log-SNR, stratified: with the weighting `simple`, the continuous ELBO on every path.

    Kingma et al. 2021, Eq. 12 and Appendix I.1; its weight in time is `weighting.elbo`. ScoreFlow's importance
    density, proportional to g^2 / sigma^2 in time, is the same, since that is -d lambda / dt.
    """

    def position(self, sde: SDE, u: Tensor) -> Tensor:
        return u

    def weight_at(self, sde: SDE, position: Tensor) -> Tensor:
        return torch.ones_like(position)


log_snr = LogSNR()

PANELS = 256  # of the log-SNR's range, in each of which alpha^2 is integrated by Gauss and Legendre's rule


class IDODE(ImportanceTimes):
    """i-DODE's times, whose density over the log-SNR is proportional to alpha^2.

    The error in the velocity v is that in eps over alpha on a variance-preserving path and on the straight line. So
    its weight in the continuous ELBO is constant at these times. On a variance-preserving path they are uniform in
    log sigma^2. The integral of alpha^2 is numerical, to 1e-12, and serves any path.

    Zheng et al. 2023, "Improved techniques for maximum likelihood estimation for diffusion ODEs".
    """

    @torch.no_grad()
    def position(self, sde: SDE, u: Tensor) -> Tensor:
        edges, passed = self._integrals(sde, u)
        target = u * passed[-1]
        i = (torch.searchsorted(passed, target, right=True) - 1).clamp(0, PANELS - 1)
        start, rest = edges[i], target - passed[i]
        position = start + rest / (passed[i + 1] - passed[i]) / PANELS
        for _ in range(3):  # Newton's method, from 1e-4 of a panel's width
            position = position - (self._integral(sde, start, position) - rest) / self._alpha_squared(sde, position)
        return position.clamp(0, 1)

    @torch.no_grad()
    def weight_at(self, sde: SDE, position: Tensor) -> Tensor:
        return self._integrals(sde, position)[1][-1] / self._alpha_squared(sde, position)

    def _integrals(self, sde: SDE, like: Tensor) -> tuple[Tensor, Tensor]:
        """The panels' edges, (PANELS + 1,), and the integral of alpha^2 over the position up to each."""
        edges = torch.linspace(0, 1, PANELS + 1, dtype=torch.float64, device=like.device)
        panels = self._integral(sde, edges[:-1], edges[1:])
        return edges, torch.cat([torch.zeros_like(edges[:1]), panels.cumsum(0)])

    def _integral(self, sde: SDE, start: Tensor, end: Tensor) -> Tensor:
        """Of alpha^2 over the position from start to end, within a panel, (n,)."""
        nodes, weights = (torch.from_numpy(each).to(start) for each in np.polynomial.legendre.leggauss(4))
        middle, half = (start + end) / 2, (end - start) / 2
        return half * (self._alpha_squared(sde, middle[:, None] + half[:, None] * nodes) @ weights)

    def _alpha_squared(self, sde: SDE, position: Tensor) -> Tensor:
        high, low = log_snr_ends(sde)
        return (2 * sde.log_alpha(sde.time(high + (low - high) * position))).exp()


idode = IDODE()


class Measured(ImportanceTimes):
    """Times of a density by which the loss varies little, measured while it trains.

        p(lambda) proportional to sqrt(E[L^2 | lambda]),   L = |eps_hat - eps|^2 / D

    is the density of least variance of independent draws; stratified ones, as here, vary less by any density. The mean
    square is a moving one in each bin of the log-SNR's range. Until a bin has been seen, the times are uniform. On a
    `MultivariateVP`, whose slopes are its own, it is not the least variance.

    Args:
        bins: of equal width over the log-SNR.
        floor: the share of times that stay uniform, so that no weight exceeds 1 / floor.
        decay: of the moving means, for each step.

    Raises:
        ValueError: for fewer than one bin, or a floor or a decay outside (0, 1).
    """

    def __init__(self, bins: int = BINS, floor: float = FLOOR, decay: float = 0.98) -> None:
        if bins < 1 or not 0 < floor < 1 or not 0 < decay < 1:
            raise ValueError(
                f"expected 1 bin or more, and floor and decay between 0 and 1, got {bins}, {floor:g} and {decay:g}"
            )
        self.floor, self.decay = floor, decay
        self.sums = torch.zeros(2, bins, dtype=torch.float64)  # of the counts, and of L^2

    @property
    def density(self) -> LevelDensity:
        """The density as measured so far."""
        return LevelDensity(least_variance(self.sums[0], self.sums[1], self.floor))

    def position(self, sde: SDE, u: Tensor) -> Tensor:
        return self.density.position(u)

    def weight_at(self, sde: SDE, position: Tensor) -> Tensor:
        return self.density.weight(position)

    @torch.no_grad()
    def see(self, sde: SDE, log_snr: Tensor, errors: Tensor) -> None:
        """Count a step's errors |eps_hat - eps|^2 / D at their log-SNRs, (n,) each; with many ranks, those of all.

        Errors that are not finite are left out. The sums stay on the device of the errors.
        """
        squares = precise(errors).square()
        known = squares.isfinite()
        self.sums = self.sums.to(squares.device)
        i = bin_of(position_of(sde, log_snr), self.sums.shape[1])
        inside = known[:, None] & (i[:, None] == torch.arange(self.sums.shape[1], device=i.device))
        values = torch.stack([torch.ones_like(squares), torch.where(known, squares, 0)])
        self.sums = self.decay * self.sums + (values[:, :, None] * inside).sum(1)  # in the same order everywhere

    def state_dict(self) -> dict[str, Tensor]:
        """The moving sums, on the CPU."""
        return {"sums": self.sums.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from these sums.

        Raises:
            ValueError: if they have another number of bins.
        """
        if state["sums"].shape != self.sums.shape:
            raise ValueError(
                f"expected {self.sums.shape[1]} bins of measured times, got {state['sums'].shape[1]}: use the same "
                "training.times"
            )
        self.sums = state["sums"].clone()


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2), clamped to the path (Karras et al. 2022, Table 1)."""

    def sample(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
        device = generator.device if generator else None
        normal = torch.randn(n, dtype=torch.float64, generator=generator, device=device)
        return sde.time(-2 * (mean + std * normal))

    return sample


def discrete(sigmas: Sequence[float]) -> Times:
    """One of a list of noise levels sigma / alpha, each as likely (Song and Ermon 2019, Section 4.2)."""
    log_snr = -2 * torch.tensor(list(sigmas), dtype=torch.float64).log()

    def sample(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
        device = generator.device if generator else None
        level = torch.randint(len(log_snr), (n,), generator=generator, device=device)
        return sde.time(log_snr.to(level.device)[level])

    return sample


def least_variance(count: Tensor, square: Tensor, floor: float) -> Tensor:
    """The probability of each bin, (bins,), proportional to the root of its mean square, above a uniform share.

    Args:
        count: of the losses in each bin, (bins,).
        square: the sum of their squares, (bins,).
        floor: the uniform share; where a bin has no loss it is 1.
    """
    root = (square / count).sqrt()
    wanted = floor / len(root) + (1 - floor) * root / root.sum()
    return torch.where((count > 0).all() & (root.sum() > 0), wanted, 1 / len(root))


def _strata(n: int, generator: Generator | None) -> Tensor:
    """Uniform numbers, one in each n-th of [0, 1)."""
    strata = torch.arange(n, dtype=torch.float64, device=generator.device if generator else None)
    return (strata + _uniforms(n, generator)) / n


def _uniforms(n: int, generator: Generator | None) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=generator, device=generator.device if generator else None)


def _between(sde: SDE, u: Tensor) -> Tensor:
    return sde.t_min + (sde.t_max - sde.t_min) * u
