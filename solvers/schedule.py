"""A path's scales along a grid of times, computed once in float64."""

import copy
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scorefield.sde_lib import SDE

if TYPE_CHECKING:
    from scorefield.solvers.variables import IntegrationVariable

T = TypeVar("T")


class Scales(NamedTuple):
    """What a solver needs to know of a path at a time; each () or one for each point of a grid."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    drift: Tensor  # f, of dx = f x dt + g dw
    diffusion: Tensor  # g

    @classmethod
    def at(cls, sde: SDE, t: Tensor) -> "Scales":
        alpha, sigma = sde.scales(t)
        return cls(t, alpha, sigma, sde.log_snr(t), sde.drift(t), sde.diffusion(t))


class ScalarScales(NamedTuple):
    """`Scales` at one time as plain numbers, for coefficients."""

    t: float
    alpha: float
    sigma: float
    log_snr: float
    drift: float
    diffusion: float


class Schedule:
    """The scales of a path along `ts`: `schedule[i]` is `Scales` of scalars, `len(schedule)` the number of times.

    They are computed on the CPU in float64 and then moved to the device of `x`, so that a solver's loop
    never waits for it.

    Raises:
        ValueError: if `ts` is not a 1-D, finite grid within [t_min, t_max], strictly monotone unless told otherwise.
    """

    def __init__(self, sde: SDE, ts: Tensor, x: Tensor, monotone: bool = True) -> None:
        self.sde = sde
        self.device = x.device
        self.ts = ts.detach().to("cpu", torch.float64)
        _check(sde, self.ts, monotone)
        self.ts = self.ts.clamp(sde.t_min, sde.t_max)  # what was forgiven at the ends
        host = Scales.at(sde, self.ts)
        self._scales = self._on_device(host)
        self._numbers = _numbers(host)
        self._kept: dict[Hashable, Any] = {}

    @property
    def increasing(self) -> bool:
        return len(self.ts) > 1 and bool(self.ts[-1] > self.ts[0])

    def host(self, i: int) -> ScalarScales:
        """The scales at time i as numbers."""
        return self._numbers[i]

    def within(self, i: int, fraction: float, clock: "IntegrationVariable") -> Scales:
        """The scales at a fraction of the way from time i to i + 1 by a clock."""
        return Scales(*(column[i] for column in self._between(fraction, clock)[1]))

    def host_within(self, i: int, fraction: float, clock: "IntegrationVariable") -> ScalarScales:
        """The same as numbers."""
        return self._between(fraction, clock)[0][i]

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed the first time this schedule is asked for it."""
        if key not in self._kept:
            self._kept[key] = compute()
        kept: T = self._kept[key]
        return kept

    def interval(self, i: int) -> "Schedule":
        """The grid of times i and i + 1 alone."""
        part = copy.copy(self)
        part.ts = self.ts[i : i + 2]
        part._numbers = self._numbers[i : i + 2]
        part._scales = Scales(*(column[i : i + 2] for column in self._scales))
        part._kept = self.once(("interval", i), dict)
        return part

    def __len__(self) -> int:
        return len(self.ts)

    def __getitem__(self, i: int) -> Scales:
        return Scales(*(column[i] for column in self._scales))

    def _between(self, fraction: float, clock: "IntegrationVariable") -> tuple[list[ScalarScales], Scales]:
        def compute() -> tuple[list[ScalarScales], Scales]:
            readings = clock.reading(self.sde, self.ts)
            ts = clock.time(self.sde, torch.lerp(readings[:-1], readings[1:], fraction))
            host = Scales.at(self.sde, ts)
            return _numbers(host), self._on_device(host)

        return self.once((fraction, clock), compute)

    def _on_device(self, host: Scales) -> Scales:
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return Scales(*(column.to(self.device, dtype) for column in host))


def _numbers(host: Scales) -> list[ScalarScales]:
    return [ScalarScales(*row) for row in zip(*(column.tolist() for column in host), strict=True)]


def _check(sde: SDE, ts: Tensor, monotone: bool) -> None:
    if ts.ndim != 1 or len(ts) == 0 or not bool(ts.isfinite().all()):
        raise ValueError(f"expected a 1-D grid of finite times, got {ts}: make one with solvers.grids")
    steps = ts.diff()
    if monotone and not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError(
            "expected a grid that only falls (to sample) or only rises (to encode); this one turns or stays"
        )
    slack = 1e-6 * (sde.t_max - sde.t_min)
    if float(ts.min()) < sde.t_min - slack or float(ts.max()) > sde.t_max + slack:
        raise ValueError(
            f"expected times within [{sde.t_min:g}, {sde.t_max:g}] of {type(sde).__name__}, "
            f"got {float(ts.min()):g} to {float(ts.max()):g}"
        )
