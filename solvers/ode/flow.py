"""The probability flow, written once: sampling, encoding and likelihood all follow it."""

import abc
from collections.abc import Callable
from typing import Any

from torch import Tensor

from scorefield.sde_lib import expand, predict_noise
from scorefield.sde_lib.denoiser import BoundDenoiser, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.schedule import Scales, Schedule
from scorefield.solvers.solver import OnStep, Solver
from scorefield.solvers.variables import IntegrationVariable

State = tuple[Tensor, ...]
Rows = slice | Tensor  # which rows of the batch a field is asked about
ALL = slice(None)
Field = Callable[[Scales, State, Rows], State]


def probability_flow(denoiser: DenoiserLike, x: Tensor, at: Scales) -> Tensor:
    """dx/dt = f x - g^2 score / 2 = f x + g^2 eps / (2 sigma), shape (B, *D)  (Song et al. 2021, Eq. 13)."""
    eps = predict_noise(denoiser, x, at.alpha, at.sigma)
    return expand(at.drift, x) * x + expand(at.diffusion**2 / (2 * at.sigma), x) * eps


def flow_of(denoiser: BoundDenoiser) -> Field:
    """The probability flow of a denoiser as a field of the state (x,)."""

    def field(at: Scales, state: State, rows: Rows) -> State:
        return (probability_flow(denoiser if rows == ALL else denoiser.take(rows), state[0], at),)

    return field


def on_clock(field: Field, clock: IntegrationVariable) -> Field:
    """The field in a clock's units, d state / dc, of the state that `enter` gives."""

    def slope(at: Scales, state: State, rows: Rows) -> State:
        inside, size = leave(state, clock, at), clock.size(at)
        velocity, *divergences = field(at, inside, rows)
        if size is not None:
            growth = clock.growth(at)
            velocity = (velocity - expand(growth, velocity) * inside[0]) / expand(size, velocity)
            divergences = [d - dims(velocity) * expand(growth, d) for d in divergences]
        rate = clock.rate(at)
        return tuple(k / expand(rate, k) for k in (velocity, *divergences))

    return slope


def enter(state: State, clock: IntegrationVariable, at: Scales) -> State:
    """The state by a clock: x / size, and the integral of that state's divergence, which is less by dims log size."""
    size = clock.size(at)
    if size is None:
        return state
    x, *integrals = state
    return (x / expand(size, x), *(c - dims(x) * expand(size.log(), c) for c in integrals))


def leave(state: State, clock: IntegrationVariable, at: Scales) -> State:
    """Back from `enter`."""
    size = clock.size(at)
    if size is None:
        return state
    y, *integrals = state
    return (y * expand(size, y), *(c + dims(y) * expand(size.log(), c) for c in integrals))


def dims(x: Tensor) -> int:
    """Of a sample."""
    return x[0].numel() if len(x) else 0


class FlowSolver(Solver):
    """A solver that integrates any field along a path, the probability flow being one."""

    @abc.abstractmethod
    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """The state of  d state / dt = field(scales at t, state, rows),  from the schedule's first time to its last.

        The state is a tuple of x (B, *D) and of integrals of the field's divergence (B, ...), if any; or of those rows
        that the field is told.
        """

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        return self.integrate(flow_of(denoiser), (x,), schedule, on_step)[0]

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        """One interval of the grid, for composition with a corrector."""
        return self.run(denoiser, x, schedule.interval(i), noise, None), None
