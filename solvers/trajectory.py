"""What a solver passed on its way."""

import math

import torch
from torch import Tensor

from scorefield.solvers.solver import Progress


class Trajectory:
    """Given to a solver as `on_step` it keeps `t` (T,), `x` (T, B, *D), and the denoiser's last `x0` before each.

    On the CPU, so that a long one does not fill the device. To stream one instead, give `on_step` any function.

        path = Trajectory(rows=8)
        DPMSolver()(denoiser, sde, x, ts, on_step=path)

    Args:
        rows: keep only the first so many samples.

    Raises:
        ValueError: when it is given to a solver that has samples take steps of their own: they have no common times.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows
        self._t: list[float] = []
        self._x: list[Tensor] = []
        self._x0: list[Tensor] = []

    def __call__(self, progress: Progress) -> None:
        """Keep one state."""
        if math.isnan(progress.t):
            raise ValueError(
                "expected a solver that keeps to the grid: in this one samples take steps of their own, and have no "
                "common times for a trajectory"
            )
        x0 = torch.full_like(progress.x, torch.nan) if progress.x0 is None else progress.x0  # none was asked for yet
        self._t.append(progress.t)
        self._x.append(progress.x[: self.rows].detach().cpu())
        self._x0.append(x0[: self.rows].detach().cpu())

    @property
    def t(self) -> Tensor:
        """The times, (T,)."""
        return torch.tensor(self._t, dtype=torch.float64)

    @property
    def x(self) -> Tensor:
        """The states at these times, (T, B, *D)."""
        return torch.stack(self._x)

    @property
    def x0(self) -> Tensor:
        """The denoiser's last answer before each, (T, B, *D)."""
        return torch.stack(self._x0)
