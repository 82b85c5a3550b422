"""A path's scales along a grid of times, computed once in float64."""

import copy
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sde_lib import SDE


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


class Schedule:
    """The scales of a path along `ts`: `schedule[i]` is `Scales` of scalars, `len(schedule)` the number of times.

    They are computed on the CPU in float64 and then moved to the device of `x`, so that a solver's loop
    never waits for it.

    Raises:
        ValueError: if `ts` is not a 1-D, finite, strictly monotone grid within [t_min, t_max].
    """

    def __init__(self, sde: SDE, ts: Tensor, x: Tensor) -> None:
        self.sde = sde
        self.device = x.device
        self.ts = ts.detach().to("cpu", torch.float64)
        _check(sde, self.ts)
        self.ts = self.ts.clamp(sde.t_min, sde.t_max)  # what was forgiven at the ends
        self._scales = self._on_device(self.ts)

    @property
    def increasing(self) -> bool:
        return len(self.ts) > 1 and bool(self.ts[-1] > self.ts[0])

    @cached_property
    def middles(self) -> Scales:
        """The scales half-way between neighbouring times, in log-SNR: one fewer than the grid has."""
        log_snr = self.sde.log_snr(self.ts)
        return self._on_device(self.sde.time((log_snr[1:] + log_snr[:-1]) / 2))

    def middle(self, i: int) -> Scales:
        return Scales(*(column[i] for column in self.middles))

    def interval(self, i: int) -> "Schedule":
        """The grid of times i and i + 1 alone."""
        part = copy.copy(self)
        part.ts = self.ts[i : i + 2]
        part._scales = Scales(*(column[i : i + 2] for column in self._scales))
        part.__dict__.pop("middles", None)
        return part

    def __len__(self) -> int:
        return len(self.ts)

    def __getitem__(self, i: int) -> Scales:
        return Scales(*(column[i] for column in self._scales))

    def _on_device(self, ts: Tensor) -> Scales:
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return Scales(*(column.to(self.device, dtype) for column in Scales.at(self.sde, ts)))


def _check(sde: SDE, ts: Tensor) -> None:
    if ts.ndim != 1 or len(ts) == 0 or not bool(ts.isfinite().all()):
        raise ValueError(f"expected a 1-D grid of finite times, got {ts}: make one with solvers.grids")
    steps = ts.diff()
    if not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError(
            "expected a grid that only falls (to sample) or only rises (to encode); this one turns or stays"
        )
    slack = 1e-6 * (sde.t_max - sde.t_min)
    if float(ts.min()) < sde.t_min - slack or float(ts.max()) > sde.t_max + slack:
        raise ValueError(
            f"expected times within [{sde.t_min:g}, {sde.t_max:g}] of {type(sde).__name__}, "
            f"got {float(ts.min()):g} to {float(ts.max()):g}"
        )
