"""Integration variables: functions of time along a path in which a solver takes its steps.

Each gives its value c(t), the time t(c) at which it has a value, and its derivative dc/dt.
"""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.bisection import bisect
from scorefield.solvers.scales import Scales


class IntegrationVariable(abc.ABC):
    """A strictly monotone function c(t) of time, and the scaling of the state that is integrated in it.

    The integrated state is y = x / scaling. When the scaling is the standard deviation of the data's marginal, the flow
    of y is what the denoiser learned and nothing else.
    """

    def scaling(self, at: Scales) -> Tensor | None:
        """What x is divided by, or None for nothing."""
        return None

    def log_scaling_rate(self, at: Scales) -> Tensor:
        """The derivative  d log scaling / dt."""
        return torch.zeros_like(at.t)

    @abc.abstractmethod
    def value(self, sde: SDE, t: Tensor) -> Tensor:
        """c(t), shaped as `t`."""

    @abc.abstractmethod
    def time(self, sde: SDE, value: Tensor) -> Tensor:
        """t(c), shaped as `value`."""

    @abc.abstractmethod
    def derivative(self, at: Scales) -> Tensor:
        """dc/dt at these scales."""


@dataclass(frozen=True)
class Time(IntegrationVariable):
    """c = t."""

    def value(self, sde: SDE, t: Tensor) -> Tensor:
        return t

    def time(self, sde: SDE, value: Tensor) -> Tensor:
        return value

    def derivative(self, at: Scales) -> Tensor:
        return torch.ones_like(at.t)


@dataclass(frozen=True)
class LogSNR(IntegrationVariable):
    """c = lambda, the log-SNR (Lu et al. 2022, DPM-Solver):  d lambda / dt = -g^2 / sigma^2."""

    def value(self, sde: SDE, t: Tensor) -> Tensor:
        return sde.log_snr(t)

    def time(self, sde: SDE, value: Tensor) -> Tensor:
        return sde.time(value)

    def derivative(self, at: Scales) -> Tensor:
        return -((at.diffusion / at.sigma) ** 2)


@dataclass(frozen=True)
class Sigma(IntegrationVariable):
    """c = n = sigma / alpha, with x / alpha for the state (Karras et al. 2022):  dn/dt = g^2 n / (2 sigma^2)."""

    def scaling(self, at: Scales) -> Tensor:
        return at.alpha

    def log_scaling_rate(self, at: Scales) -> Tensor:
        return at.drift

    def value(self, sde: SDE, t: Tensor) -> Tensor:
        return (-sde.log_snr(t) / 2).exp()

    def time(self, sde: SDE, value: Tensor) -> Tensor:
        return sde.time(-2 * value.log())

    def derivative(self, at: Scales) -> Tensor:
        return at.diffusion**2 / (2 * at.sigma * at.alpha)


@dataclass(frozen=True)
class SoftClippedLogSNR(IntegrationVariable):
    """c = -2 log((n + low) / (1 + n / high)) - time_weight t,  n = sigma / alpha: the log-SNR, softly clipped.

    It follows the log-SNR for low < n < high, and is nearly constant below and above. The denoiser is so too: data has
    no detail finer than `low`, and is one blur beyond `high`. A `time_weight` keeps c moving there, for networks that
    are rough in their embedding of time.

    With a `spread`, about the data's standard deviation, the state is x / s,  s = sqrt(sigma^2 + (alpha spread)^2).
    The flow of a Gaussian of that spread leaves it constant:  d log s / dt = f + g^2 / (2 s^2).

    Args:
        low, high: noise levels between which c follows the log-SNR.
        spread: standard deviation of the data, or None for no scaling.
        time_weight: weight of the time in c, 0 or more.

    Raises:
        ValueError: for settings outside these ranges.
    """

    low: float = 0.01
    high: float = 20.0
    spread: float | None = None
    time_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"expected 0 < low < high, got {self.low} and {self.high}")
        if self.spread is not None and not self.spread > 0:
            raise ValueError(f"expected a positive spread, got {self.spread}")
        if not self.time_weight >= 0:
            raise ValueError(f"expected a time_weight of 0 or more, got {self.time_weight}")

    def scaling(self, at: Scales) -> Tensor | None:
        return None if self.spread is None else torch.hypot(at.sigma, at.alpha * self.spread)

    def log_scaling_rate(self, at: Scales) -> Tensor:
        scaling = self.scaling(at)
        return super().log_scaling_rate(at) if scaling is None else at.drift + (at.diffusion / scaling) ** 2 / 2

    def value(self, sde: SDE, t: Tensor) -> Tensor:
        n = (-sde.log_snr(t) / 2).exp()
        return -2 * ((n + self.low) / (1 + n / self.high)).log() - self.time_weight * t

    def time(self, sde: SDE, value: Tensor) -> Tensor:
        if self.time_weight:
            return bisect(lambda t: self.value(sde, t) > value, value, sde.t_min, sde.t_max, halvings=60)
        ratio = (-value / 2).exp()
        return sde.time(-2 * ((ratio - self.low) / (1 - ratio / self.high)).log())

    def derivative(self, at: Scales) -> Tensor:
        n = at.sigma / at.alpha
        share = n / (n + self.low) - n / (self.high + n)  # dc / dlambda
        return -share * (at.diffusion / at.sigma) ** 2 - self.time_weight


VECTOR = 64  # a multiple of the length of any processor's vectors
VARIABLES: dict[str, IntegrationVariable] = {
    "time": Time(),
    "sigma": Sigma(),
    "log_snr": LogSNR(),
    "soft_clipped": SoftClippedLogSNR(),
}


def find(variable: str | IntegrationVariable) -> IntegrationVariable:
    """The integration variable of that name, or the variable itself.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(variable, IntegrationVariable):
        return variable
    if variable not in VARIABLES:
        raise ValueError(f"expected an integration variable ({', '.join(VARIABLES)}), got {variable!r}")
    return VARIABLES[variable]


def scales_at(sde: SDE, variable: IntegrationVariable, values: Tensor, ends: Tensor) -> Scales:
    """The scales at values of the variable, () or (R,), between the times `ends`.

    A row's result does not depend on its neighbours. A processor rounds functions of full vectors differently from what
    remains at the end of one, so the values are padded to full vectors.
    """
    count = values.numel()
    flat = values.reshape(-1)
    padded = torch.cat([flat, flat[-1:].expand(-count % VECTOR)])
    t = variable.time(sde, padded).clamp(ends.min(), ends.max())
    return Scales(*(column[:count].reshape(values.shape) for column in Scales.at(sde, t)))
