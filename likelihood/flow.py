"""The probability flow with its divergence beside it, as a field for a solver."""

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Divergence
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import Adaptive, FlowSolver, Scales, probability_flow
from scorefield.solvers.ode.flow import ALL, Rows, State


class FlowWithDivergence:
    """State (x, integrals of E estimates of the divergence (B, E)); `counts` are each sample's evaluations.

    Args:
        denoiser: E[x0 | x] with its conditioning.
        divergence: exact or by probes.
        fresh: whether every evaluation draws probes of its own.
        noise: their source.
        differentiable: whether what it gives can be differentiated.
    """

    def __init__(
        self,
        denoiser: BoundDenoiser,
        divergence: Divergence,
        fresh: bool,
        noise: Noise,
        differentiable: bool = False,
    ) -> None:
        self.denoiser, self.divergence, self.fresh, self.noise = denoiser, divergence, fresh, noise
        self.differentiable = differentiable
        self.counts = torch.zeros(0, dtype=torch.long)
        self._kept: Tensor | None = None

    def begin(self, x: Tensor, directions: Tensor | None = None) -> State:
        """The state at x; the probes that are kept are drawn, unless given."""
        self.counts = torch.zeros(len(x), dtype=torch.long)
        if directions is None and not self.fresh:
            directions = self.divergence.directions(x.detach(), self.noise)
        self._kept = directions
        return x, torch.zeros(len(x), self.divergence.count, dtype=x.dtype, device=x.device)

    def __call__(self, at: Scales, state: State, rows: Rows) -> State:
        x, model = state[0], self.denoiser if rows == ALL else self.denoiser.take(rows)
        self.counts[rows.cpu() if isinstance(rows, Tensor) else rows] += 1
        if self._kept is None:
            along = self.divergence.directions(x.detach(), self.noise)
        else:
            along = self._kept if self.divergence.shared else self._kept[:, rows]
        return self.divergence(lambda y: probability_flow(model, y, at), x, along, self.differentiable)


def draws_fresh(divergence: Divergence, solver: FlowSolver) -> bool:
    """Whether probes are drawn anew at every evaluation: unless told, on a grid.

    Raises:
        ValueError: when asked of an adaptive solver.
    """
    asked: bool | None = getattr(divergence, "fresh", False)
    if asked and isinstance(solver, Adaptive):
        raise ValueError(f"{solver} would take fresh probes for errors of its own: keep them, or use AdamsMoulton()")
    return not isinstance(solver, Adaptive) if asked is None else asked


def check_finite(x0: Tensor) -> None:
    """Raises ValueError for samples with values that are not finite, and says which."""
    if not x0.is_floating_point():
        raise ValueError(f"expected floating-point samples, got {x0.dtype}: dequantise integers, or cast them")
    if x0.ndim < 2:
        raise ValueError(f"expected samples (B, *D), got {tuple(x0.shape)}: add the dimension that is missing")
    bad = (~x0.detach().isfinite()).flatten(1).any(1).nonzero().flatten().tolist() if len(x0) else []
    if bad:
        raise ValueError(
            f"expected finite samples, got NaN or infinity in {len(bad)} of {len(x0)}, the first being number {bad[0]}"
        )
