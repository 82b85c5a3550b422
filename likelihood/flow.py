"""The probability flow together with its divergence, as a field for a solver."""

from dataclasses import replace

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Divergence, Hutchinson, HutchPlusPlus
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import FlowSolver, Scales, probability_flow
from scorefield.solvers.ode.flow import Rows, State


class FlowWithDivergence:
    """A field of the state (x, integrals of E estimates of the divergence (B, E)).

    `counts` are the evaluations of each sample.

    Args:
        denoiser: E[x0 | x] with its conditioning.
        divergence: exact or by probes.
        fresh: draw new probes at every evaluation.
        noise: source of the probes.
        differentiable: keep the graph of the results.
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
        self._directions: Tensor | None = None

    def begin(self, x: Tensor, directions: Tensor | None = None) -> State:
        """The initial state at x. Probes that stay the same are drawn here, unless passed."""
        self.counts = torch.zeros(len(x), dtype=torch.long)
        if directions is None and not self.fresh:
            directions = self.divergence.directions(x.detach(), self.noise)
        self._directions = directions
        return x, torch.zeros(len(x), self.divergence.count, dtype=x.dtype, device=x.device)

    def __call__(self, at: Scales, state: State, rows: Rows) -> State:
        x, model = state[0], self.denoiser.take(rows)
        self.counts[rows.cpu() if isinstance(rows, Tensor) else rows] += 1
        if self._directions is None:
            directions = self.divergence.directions(x.detach(), self.noise)
        else:
            directions = self._directions if self.divergence.shared else self._directions[:, rows]
        return self.divergence(lambda y: probability_flow(model, y, at), x, directions, self.differentiable)


def with_kept_probes(divergence: Divergence) -> Divergence:
    """The divergence with probes that stay the same, where it has probes."""
    return replace(divergence, fresh=False) if isinstance(divergence, Hutchinson | HutchPlusPlus) else divergence


def draws_fresh(divergence: Divergence, solver: FlowSolver) -> bool:
    """Whether to draw new probes at every evaluation: as `divergence.fresh` says, by default on a fixed grid.

    Raises:
        ValueError: if `fresh` is set for an adaptive solver.
    """
    fresh: bool | None = getattr(divergence, "fresh", False)
    adaptive = not solver.fixed_grid
    if fresh and adaptive:
        raise ValueError(
            f"expected probes that stay the same for {solver}, whose error estimate would include fresh ones, got "
            f"{divergence}: set fresh=False, or use AdamsMoulton()"
        )
    return not adaptive if fresh is None else fresh
