"""What `choose_solver` chooses: how to score a data set within a tolerance."""

from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.solvers import AdamsMoulton, grids
from scorefield.solvers.variables import SoftClippedLogSNR


@dataclass(frozen=True)
class Plan:
    """How to score a data set within a tolerance.

    Args:
        solver: with its integration variable.
        ts: its rising grid, with which each sample begins.
        tolerance: the requested one, in bits/dim.
        ratio: of the error of a value to the estimate of `AdamsMoulton.integrate_with_error`.
        met: whether the trial samples are within the tolerance in `max_steps` steps.
        trial_nfe: evaluations that the choice took, over all trial samples.
        finest: the most steps of a sample that is solved again.
    """

    solver: AdamsMoulton
    ts: Tensor
    tolerance: float
    ratio: float
    met: bool
    trial_nfe: int
    finest: int = 0

    @property
    def steps(self) -> int:
        """The number of steps with which each sample begins."""
        return len(self.ts) - 1

    def grid(self, sde: SDE, steps: int) -> Tensor:
        """A rising grid of more steps."""
        return grid_of(self.solver, sde, steps)

    def __repr__(self) -> str:
        met = "" if self.met else ", which was not met"
        return (
            f"Plan({self.solver}, {self.steps} steps, tolerance {self.tolerance:g} bits/dim{met}, "
            f"{self.trial_nfe} evaluations to choose)"
        )


def grid_of(solver: AdamsMoulton, sde: SDE, steps: int) -> Tensor:
    """A rising grid of equal steps in the solver's integration variable."""
    assert isinstance(solver.variable, SoftClippedLogSNR)
    return grids.uniform_in(sde, steps, solver.variable).flip(0)
