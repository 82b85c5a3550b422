"""RePaint: known values pasted at each noise level, with jumps back."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.ddim import Ancestral
from scorefield.solvers.restoration.problem import Problem, Restoration
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import OnStep, Progress


@dataclass(frozen=True)
class RePaint(Restoration):
    """Ancestral steps that paste the known values, noised to each level, and jumps of `jump` steps back to noise.

    Lugmayr et al. 2022, Alg. 1. Each stretch of `jump` steps is taken `times` times, but for the one next to the
    grid's first time. With times=1 it is the replacement method (Song et al. 2021, Appendix I.2), which is also what a
    grid of fewer steps than a jump gives.

    Known values are  y = x0 + noise_std n.  At a level with sigma >= alpha noise_std they become
    alpha y + sqrt(sigma^2 - alpha^2 noise_std^2) eps,  which has the law of x given x0. At lower levels y is noisier
    than x: nothing is pasted, no jump starts, and the prior denoises known values as all others. Without noise the
    result has y itself. It is a restorer, and no posterior sampler: what a level has chosen for the hidden values, the
    known ones correct at later levels alone.

    Args:
        jump: steps of a jump.
        times: how often a stretch is taken.

    Raises:
        ValueError: for less than 1 of either; for a measurement that is no mask.
    """

    jump: int = 10
    times: int = 10

    def __post_init__(self) -> None:
        if self.jump < 1 or self.times < 1:
            raise ValueError(
                f"expected a jump of 1 step or more, 1 time or more, got {self.jump} and {self.times}: use 10 and 10"
            )

    def check_problem(self, problem: Problem) -> None:
        if problem.known is None:
            raise ValueError(
                f"expected a mask for RePaint, which pastes known values, got {shown(problem.measurement)}: use "
                "DDRM(), DAPS() or Twisted()"
            )

    def walk(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        path = self._path(problem, schedule)
        for k, (i, to) in enumerate(itertools.pairwise(path)):
            x = self.update(problem, x, schedule, i, noise) if to > i else _back(x, schedule, i, to, noise)
            if on_step is not None:
                on_step(Progress(k + 1, len(path) - 1, float(schedule.ts[to]), x))
        return x

    def _path(self, problem: Problem, schedule: Schedule) -> list[int]:
        """The indices of the grid's times in the order of visits. Jumps are from levels at which y is pasted."""
        steps = len(schedule) - 1
        jumps = range(steps, self.jump, -self.jump)
        left = {at: self.times - 1 for at in jumps if _variance(problem, schedule, at) >= 0}
        visits = [0]
        while visits[-1] < steps or left.get(steps, 0) > 0:
            at = visits[-1]
            if left.get(at, 0) > 0:
                left[at] -= 1
                visits.append(at - self.jump)
            else:
                visits.append(at + 1)
        return visits

    def update(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        x, _ = Ancestral().step(problem.prior, x, schedule, i, noise, None)
        variance = _variance(problem, schedule, i + 1)
        if variance < 0:
            return x
        assert problem.known is not None
        pasted = schedule.scalars(i + 1).alpha * problem.measurement.adjoint(problem.y) + variance**0.5 * noise(x)
        return torch.where(problem.known, pasted, x)

    def finish(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        last = schedule[-1]
        return problem.prior(x, last.alpha, last.sigma)


def _variance(problem: Problem, schedule: Schedule, i: int) -> float:
    """Sigma^2 - alpha^2 noise_std^2, of the noise that y lacks at time i."""
    at = schedule.scalars(i)
    return at.sigma**2 - (at.alpha * problem.noise_std) ** 2


def _back(x: Tensor, schedule: Schedule, i: int, to: int, noise: Noise) -> Tensor:
    """The forward process from time i to an earlier one of the grid, which is noisier."""
    ratio = schedule[to].alpha / schedule[i].alpha
    std = (schedule[to].sigma.square() - (ratio * schedule[i].sigma).square()).clamp(min=0).sqrt()
    return expand(ratio, x) * x + expand(std, x) * noise(x)
