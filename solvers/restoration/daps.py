"""DAPS: estimates of x0, corrected by the measurement and noised again."""

from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib.sde import Noise, noised
from scorefield.solvers.multistep.ddim import DDIM
from scorefield.solvers.restoration.conditional import check_noise, draw
from scorefield.solvers.restoration.problem import Problem, Restoration, denoised
from scorefield.solvers.schedule import Schedule


@dataclass(frozen=True)
class DAPS(Restoration):
    """Decoupled annealing (Zhang et al. 2024, "Improving Diffusion Inverse Problem Solving with Decoupled Noise
    Annealing", Alg. 1): at each level

        x0hat by the probability flow,   x0 ~ N(x0hat, rho^2) N(y; A(x0), noise_std^2),   x' = alpha' x0 + sigma' eps,

    with rho = sigma / alpha. The draw is exact for a linear measurement, and by Langevin steps for others. Its noise is
    that of the measurement; the published settings have a fifth of it. p(x0 | x) is no Gaussian around x0hat, so the
    result is near the posterior, and not the posterior.

    Args:
        steps: evaluations of the prior at each level; with one, x0hat = D(x).
        langevin: Langevin steps of a draw, for a nonlinear measurement.

    Raises:
        ValueError: for less than 1 of either; for a nonlinear measurement without noise.
    """

    steps: int = 5
    langevin: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.langevin < 1:
            raise ValueError(
                f"expected 1 step or more, and 1 of langevin, got {self.steps} and {self.langevin}: use 5 and 100"
            )

    def check_problem(self, problem: Problem) -> None:
        check_noise(problem, "DAPS")

    def update(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        to = schedule[i + 1]
        return noised(self._corrected(problem, x, schedule, i, noise), to.alpha, to.sigma, noise(x))

    def finish(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        return self._corrected(problem, x, schedule, len(schedule) - 1, noise)

    def _corrected(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        at = schedule[i]
        x0 = denoised(problem, x, schedule, float(schedule.ts[i]), DDIM(), self.steps, noise)
        return draw(problem, x0, (at.sigma / at.alpha).square(), noise, self.langevin)
