"""An inverse problem as its solvers see it, and what they share."""

import abc
import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.inverse_problem import (
    MeasurementLike,
    as_inverse_problem,
    check_measured,
    known_values,
    nearest_consistent,
)
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Progress, Solver


@dataclass(frozen=True)
class Problem:
    """A batch of inverse problems  y = A(x0) + noise_std n  of one measurement.

    Args:
        prior: E[x0 | x] with the prior's own conditioning.
        measurement: A.
        noise_std: of the measurement's noise.
        y: the measurements, (B, *M).
    """

    prior: BoundDenoiser
    measurement: MeasurementLike
    noise_std: float
    y: Tensor

    @cached_property
    def known(self) -> Tensor | None:
        """Which values the measurement gathers, as booleans (*D); None where it is no mask."""
        return known_values(self.measurement, self.y)

    def consistent(self, x0: Tensor) -> Tensor:
        """x0 as it is, or without noise the nearest one with  A x0 = y,  for a linear measurement, (B, *D)."""
        if self.noise_std > 0 or not self.measurement.linear:
            return x0
        return nearest_consistent(self.measurement, x0, self.y)


def problem_of(denoiser: BoundDenoiser, x: Tensor, who: str) -> Problem:
    """The problem of a bound denoiser, for samples x (B, *D).

    Raises:
        ValueError: for a denoiser that is no inverse problem, without y, or with y or x of other shapes.
    """
    posed = as_inverse_problem(denoiser.denoiser, who)
    y = check_measured(denoiser.cond.get("y"), posed.measurement, len(x))
    if tuple(x.shape[1:]) != tuple(posed.measurement.shape):
        raise ValueError(
            f"expected samples (B, {', '.join(map(str, posed.measurement.shape))}) for "
            f"{shown(posed.measurement)}, got {tuple(x.shape)}: make the measurement for the shape of the data"
        )
    prior = copy.copy(denoiser)  # which keeps its last answer where the first one does
    prior.denoiser = posed.prior
    prior.cond = {key: value for key, value in denoiser.cond.items() if key != "y"}
    return Problem(prior, posed.measurement, posed.noise_std, y if y.is_complex() else y.to(x))


class Restoration(Solver):
    """A solver of inverse problems: an update from each level of the grid to the next, and a last estimate of x0.

    It is given an `InverseProblem`, and `cond={"y": y}`.
    """

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def returns_x0(self) -> bool:
        return True

    @abc.abstractmethod
    def update(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        """`x` at time i of the schedule, taken to time i + 1."""

    @abc.abstractmethod
    def finish(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        """The estimate of x0 of `x` at the schedule's last time."""

    def begin(self, problem: Problem, x: Tensor, schedule: Schedule) -> Tensor:
        """The state at the first time, of a draw of the path's prior."""
        return x

    def check_problem(self, problem: Problem) -> None:
        """Raises ValueError for measurements that it cannot take."""

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        problem = problem_of(denoiser, x, type(self).__name__)
        self.check_problem(problem)
        x = self.walk(problem, self.begin(problem, x, schedule), schedule, noise, on_step)
        return problem.consistent(self.finish(problem, x, schedule, noise))

    def walk(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        """`x` at the first time of the schedule, taken to the last."""
        for i in range(len(schedule) - 1):
            x = self.update(problem, x, schedule, i, noise)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), x))
        return x

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        problem = problem_of(denoiser, x, type(self).__name__)
        self.check_problem(problem)
        return self.update(problem, x, schedule, i, noise), None


def denoised(
    problem: Problem, x: Tensor, schedule: Schedule, t: float, solver: Solver, steps: int, noise: Noise
) -> Tensor:
    """x0 of `x` at time t by `steps` evaluations of the prior: steps of the solver, and D(x) at the schedule's end.

    The noise levels between are even in rho^(1/7), rho = sigma / alpha  (Karras et al. 2022, Eq. 5).
    """

    def levels() -> Schedule:
        sde, end = schedule.sde, float(schedule.ts[-1])
        ends = torch.tensor([t, end], dtype=torch.float64)
        first, last = (-sde.log_snr(ends) / 14).exp()
        between = torch.linspace(0, 1, steps, dtype=torch.float64)[1:-1]
        times = sde.time(-14 * torch.lerp(first, last, between).log())
        apart = t - end > 1e-9 * (sde.t_max - sde.t_min)
        return Schedule(sde, torch.cat([ends[:1], times, ends[1:]]) if steps > 1 and apart else ends[:1], x)

    inner = schedule.cached(("denoised", t, steps), levels)
    for j in range(len(inner) - 1):
        x, _ = solver.step(problem.prior, x, inner, j, noise, None)
    last = inner[-1]
    return problem.prior(x, last.alpha, last.sigma)
