"""Split Gibbs sampling: the measurement and the prior in turn, at falling noise levels."""

import math
from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.ddim import Ancestral
from scorefield.solvers.restoration.conditional import check_noise, draw
from scorefield.solvers.restoration.problem import Problem, Restoration, denoised
from scorefield.solvers.schedule import Schedule


@dataclass(frozen=True)
class SplitGibbs(Restoration):
    """PnP-DM (Wu et al. 2024, "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors"):

        z ~ N(x0, rho^2) N(y; A(z), noise_std^2),    x0 ~ p(x0 | z) = p(x0) N(z; x0, rho^2),    in turn,

    with rho = sigma / alpha of each level of the grid. The first is exact for a linear measurement, and by Langevin
    steps for others. The second is the reverse process from alpha z at that level. At one rho the chain tends to
    p(x0) N(y; A x0, noise_std^2 I + rho^2 A A^T)  for a linear measurement: it is right for small rho, where it mixes
    slowly.

    Args:
        steps: evaluations of the prior at each level.
        least: the rho at which the levels stop falling; 0 for that of the grid's end. The paper stops at 0.3.
        langevin: Langevin steps of a draw, for a nonlinear measurement.

    Raises:
        ValueError: for less than 1 step, or a rho below zero; for a nonlinear measurement without noise.
    """

    steps: int = 10
    least: float = 0.0
    langevin: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.langevin < 1 or not self.least >= 0:
            raise ValueError(
                f"expected 1 step or more, 1 of langevin, and a rho of 0 or more, got {self.steps}, {self.langevin} "
                f"and {self.least}: use 10, 100 and 0"
            )

    def check_problem(self, problem: Problem) -> None:
        check_noise(problem, "SplitGibbs")

    def update(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        to = self._levels(schedule, x)[i + 1]
        x0 = self._sampled(problem, x, schedule, i, noise)
        return expand(to.alpha, x) * draw(problem, x0, (to.sigma / to.alpha).square(), noise, self.langevin)

    def finish(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        return self._sampled(problem, x, schedule, len(schedule) - 1, noise)

    def _sampled(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        """A draw of p(x0 | x) of the prior."""
        t = float(self._levels(schedule, x).ts[i])
        return denoised(problem, x, schedule, t, Ancestral(), self.steps, noise)

    def _levels(self, schedule: Schedule, x: Tensor) -> Schedule:
        """The grid with its levels below `least` raised to it."""

        def levels() -> Schedule:
            stop = float(schedule.sde.time(-2 * math.log(self.least))) if self.least > 0 else schedule.sde.t_min
            ts = schedule.ts.clamp(min=min(stop, float(schedule.ts[0])))
            return Schedule(schedule.sde, ts, x, monotone=False)

        return schedule.cached((self, "levels"), levels)
