"""A path's scales along a grid of times, computed once in float64."""

import copy
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.arguments import shown
from scorefield.solvers.scales import ScalarScales, Scales
from scorefield.solvers.variables import IntegrationVariable

T = TypeVar("T")


class Schedule:
    """The scales of a path along `ts`: `schedule[i]` is `Scales` of scalars, `len(schedule)` the number of times.

    They are computed on the CPU in float64 and then moved to the device of `x`, so that a solver's loop never waits for
    the device. Those of a path with a noise level for each dimension are (B, *D), on its own device. Each is computed
    when it is needed, and is no plain number.

    Args:
        sde: the path.
        ts: 1-D grid of times; see `solvers.grids`.
        x: a tensor on the device of the samples.
        monotone: whether the grid must rise or fall strictly.

    Raises:
        ValueError: if `ts` is not a 1-D, finite grid within [t_min, t_max], or does not rise or fall where it must.
    """

    def __init__(self, sde: SDE, ts: Tensor, x: Tensor, monotone: bool = True) -> None:
        self.sde = sde
        self.device = x.device
        check_grid(ts)
        self.ts = ts.detach().to("cpu", torch.float64)
        _check(sde, self.ts, monotone)
        self.ts = self.ts.clamp(sde.t_min, sde.t_max)  # rounding at the ends was allowed
        self._cache: dict[Hashable, Any] = {}
        if sde.per_dimension:
            return
        on_cpu = Scales.at(sde, self.ts)
        self._scales = self._on_device(on_cpu)
        self._scalars = _scalars(on_cpu)

    @property
    def increasing(self) -> bool:
        """Whether the grid rises, from data to noise."""
        return len(self.ts) > 1 and bool(self.ts[-1] > self.ts[0])

    def scalars(self, i: int) -> ScalarScales:
        """The scales at time i as plain numbers."""
        return self._scalars[i]

    def between(self, i: int, fraction: float, variable: IntegrationVariable) -> Scales:
        """The scales at a fraction of the way from time i to i + 1, measured in an integration variable."""
        if self.sde.per_dimension:
            values = variable.value(self.sde, self.ts)
            return self._at(variable.time(self.sde, torch.lerp(values[i], values[i + 1], fraction)))
        return Scales(*(column[i] for column in self._between(fraction, variable)[1]))

    def scalars_between(self, i: int, fraction: float, variable: IntegrationVariable) -> ScalarScales:
        """The same as plain numbers."""
        return self._between(fraction, variable)[0][i]

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, which is called once for each key."""
        if key not in self._cache:
            self._cache[key] = compute()
        result: T = self._cache[key]
        return result

    def interval(self, i: int) -> "Schedule":
        """The schedule of times i and i + 1 only."""
        part = copy.copy(self)
        part.ts = self.ts[i : i + 2]
        part._cache = self.cached(("interval", i), dict)
        if self.sde.per_dimension:
            return part
        part._scalars = self._scalars[i : i + 2]
        part._scales = Scales(*(column[i : i + 2] for column in self._scales))
        return part

    def __len__(self) -> int:
        return len(self.ts)

    def __getitem__(self, i: int) -> Scales:
        if self.sde.per_dimension:
            return self._at(self.ts[i])
        return Scales(*(column[i] for column in self._scales))

    def _between(self, fraction: float, variable: IntegrationVariable) -> tuple[list[ScalarScales], Scales]:
        def compute() -> tuple[list[ScalarScales], Scales]:
            values = variable.value(self.sde, self.ts)
            ts = variable.time(self.sde, torch.lerp(values[:-1], values[1:], fraction))
            on_cpu = Scales.at(self.sde, ts)
            return _scalars(on_cpu), self._on_device(on_cpu)

        return self.cached((fraction, variable), compute)

    def _at(self, t: Tensor) -> Scales:
        """The scales at one time, computed on the device."""
        return Scales.at(self.sde, t.to(self.device, self._dtype))

    def _on_device(self, on_cpu: Scales) -> Scales:
        return Scales(*(column.to(self.device, self._dtype) for column in on_cpu))

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64


def _scalars(scales: Scales) -> list[ScalarScales]:
    return [ScalarScales(*row) for row in zip(*(column.tolist() for column in scales), strict=True)]


def check_grid(ts: Tensor) -> None:
    """Raises ValueError unless ts is a 1-D tensor of finite times."""
    if not isinstance(ts, Tensor) or ts.ndim != 1 or len(ts) == 0 or not bool(ts.isfinite().all()):
        bad = isinstance(ts, Tensor) and ts.ndim == 1 and len(ts) > 0
        raise ValueError(
            f"expected a 1-D tensor of finite times, got {'NaN or inf in ' if bad else ''}{shown(ts)}: make one of "
            "20 steps by grids.log_snr(sde, 20), or of your own times by torch.tensor"
        )


def _check(sde: SDE, ts: Tensor, monotone: bool) -> None:
    steps = ts.diff()
    if monotone and not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError(
            "expected a grid that only falls (to sample) or only rises (to encode), got one that turns or repeats a "
            "time: make one with solvers.grids"
        )
    slack = 1e-6 * (sde.t_max - sde.t_min)
    if float(ts.min()) < sde.t_min - slack or float(ts.max()) > sde.t_max + slack:
        raise ValueError(
            f"expected times within [{sde.t_min:g}, {sde.t_max:g}] of {type(sde).__name__}, "
            f"got {float(ts.min()):g} to {float(ts.max()):g}: make a grid of this path with solvers.grids"
        )
