"""The states along a solver's steps."""

import math

import torch
from torch import Tensor

from scorefield.solvers.solver import Progress


class Trajectory:
    """The times `t` (T,), the states `x` (T, B, *D), and the denoiser's last `x0` before each, of every step.

        path = Trajectory(rows=8)
        DPMSolver()(denoiser, sde, x, ts, on_step=path)

    They are kept on the CPU, so that a long trajectory does not fill the device. To stream one, use any function as
    `on_step`.

    Args:
        rows: keep the first samples only, this many.

    Raises:
        ValueError: when the solver has no common times for its samples.
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
                "expected a solver on a fixed grid, got one in which each sample has its own times: use DPMSolver() "
                "or per_sample=False"
            )
        x0 = torch.full_like(progress.x, torch.nan) if progress.x0 is None else progress.x0  # no answer yet
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
