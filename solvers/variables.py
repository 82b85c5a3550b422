"""Clocks: other variables than time to take equal or smooth steps in, all of them functions of the noise level.

A clock says what it reads at a time, when it reads so, and how fast it runs:  c(t),  t(c)  and  dc/dt.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.solvers.schedule import Scales


class IntegrationVariable(abc.ABC):
    """A strictly monotone function of time along a path, and the size of the state that is followed by it.

    The state by a clock is y = x / size: one whose size is that of the data's marginal leaves the flow nothing to do
    but what the denoiser learned.
    """

    def size(self, at: Scales) -> Tensor | None:
        """What x is divided by; None for nothing."""
        return None

    def growth(self, at: Scales) -> Tensor:
        """D log size / dt."""
        return torch.zeros_like(at.t)

    @abc.abstractmethod
    def reading(self, sde: SDE, t: Tensor) -> Tensor:
        """c(t), shaped as `t`."""

    @abc.abstractmethod
    def time(self, sde: SDE, reading: Tensor) -> Tensor:
        """t(c), shaped as `reading`."""

    @abc.abstractmethod
    def rate(self, at: Scales) -> Tensor:
        """dc/dt at these scales."""


@dataclass(frozen=True)
class Time(IntegrationVariable):
    """c = t."""

    def reading(self, sde: SDE, t: Tensor) -> Tensor:
        return t

    def time(self, sde: SDE, reading: Tensor) -> Tensor:
        return reading

    def rate(self, at: Scales) -> Tensor:
        return torch.ones_like(at.t)


@dataclass(frozen=True)
class LogSNR(IntegrationVariable):
    """c = lambda, the log-SNR (Lu et al. 2022, DPM-Solver):  d lambda / dt = -g^2 / sigma^2."""

    def reading(self, sde: SDE, t: Tensor) -> Tensor:
        return sde.log_snr(t)

    def time(self, sde: SDE, reading: Tensor) -> Tensor:
        return sde.time(reading)

    def rate(self, at: Scales) -> Tensor:
        return -((at.diffusion / at.sigma) ** 2)


@dataclass(frozen=True)
class Sigma(IntegrationVariable):
    """c = n = sigma / alpha, with x / alpha for the state (Karras et al. 2022):  dn/dt = g^2 n / (2 sigma^2)."""

    def size(self, at: Scales) -> Tensor:
        return at.alpha

    def growth(self, at: Scales) -> Tensor:
        return at.drift

    def reading(self, sde: SDE, t: Tensor) -> Tensor:
        return (-sde.log_snr(t) / 2).exp()

    def time(self, sde: SDE, reading: Tensor) -> Tensor:
        return sde.time(-2 * reading.log())

    def rate(self, at: Scales) -> Tensor:
        return at.diffusion**2 / (2 * at.sigma * at.alpha)


@dataclass(frozen=True)
class SoftClippedLogSNR(IntegrationVariable):
    """c = -2 log((n + low) / (1 + n / high)) - pace t,  n = sigma / alpha: the log-SNR where it matters, slow beyond.

    It follows lambda for low < n < high, and stands still below and above, where the denoiser does so too: data has
    no detail finer than `low`, and is all one blur beyond `high`. A `pace` keeps it going there, for networks that
    are rough in an embedding of time.

    With a `spread`, the data's standard deviation or so, the state is x / sqrt(sigma^2 + (alpha spread)^2), which the
    flow of a Gaussian of that spread leaves as it is:  d log size / dt = f + g^2 / (2 size^2).
    """

    low: float = 0.01
    high: float = 20.0
    spread: float | None = None
    pace: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"expected 0 < low < high, got {self.low} and {self.high}")
        if self.spread is not None and not self.spread > 0:
            raise ValueError(f"expected a positive spread, got {self.spread}")
        if not self.pace >= 0:
            raise ValueError(f"expected a pace of 0 or more, got {self.pace}")

    def size(self, at: Scales) -> Tensor | None:
        return None if self.spread is None else torch.hypot(at.sigma, at.alpha * self.spread)

    def growth(self, at: Scales) -> Tensor:
        size = self.size(at)
        return super().growth(at) if size is None else at.drift + (at.diffusion / size) ** 2 / 2

    def reading(self, sde: SDE, t: Tensor) -> Tensor:
        n = (-sde.log_snr(t) / 2).exp()
        return -2 * ((n + self.low) / (1 + n / self.high)).log() - self.pace * t

    def time(self, sde: SDE, reading: Tensor) -> Tensor:
        if self.pace:
            return _bisect(lambda t: self.reading(sde, t), reading, sde.t_min, sde.t_max)
        ratio = (-reading / 2).exp()
        return sde.time(-2 * ((ratio - self.low) / (1 - ratio / self.high)).log())

    def rate(self, at: Scales) -> Tensor:
        n = at.sigma / at.alpha
        share = n / (n + self.low) - n / (self.high + n)  # dc / dlambda
        return -share * (at.diffusion / at.sigma) ** 2 - self.pace


def _bisect(falling: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float) -> Tensor:
    """The t in [low, high] at which a falling function has this value, to rounding."""
    below, above = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(60):
        middle = (below + above) / 2
        later = falling(middle) > value
        below, above = torch.where(later, middle, below), torch.where(later, above, middle)
    return (below + above) / 2


LANES = 64  # a multiple of every vector's length
CLOCKS: dict[str, IntegrationVariable] = {
    "time": Time(),
    "sigma": Sigma(),
    "log_snr": LogSNR(),
    "saturated": SoftClippedLogSNR(),
}


def find(clock: str | IntegrationVariable) -> IntegrationVariable:
    """The clock of that name, or the clock itself.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(clock, IntegrationVariable):
        return clock
    if clock not in CLOCKS:
        raise ValueError(f"expected a clock ({', '.join(CLOCKS)}), got {clock!r}")
    return CLOCKS[clock]


def scales_at(sde: SDE, clock: IntegrationVariable, readings: Tensor, ends: Tensor) -> Scales:
    """The scales when the clock reads so, (), or for each sample (R,), between the times `ends`.

    Each number is what it would be alone: a processor's vector units round functions otherwise than what is left over
    at the end of a vector, so there is nothing left over.
    """
    count = readings.numel()
    flat = readings.reshape(-1)
    whole = torch.cat([flat, flat[-1:].expand(-count % LANES)])
    t = clock.time(sde, whole).clamp(ends.min(), ends.max())
    return Scales(*(column[:count].reshape(readings.shape) for column in Scales.at(sde, t)))
