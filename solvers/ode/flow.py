"""The probability flow: sampling, encoding and likelihood all integrate it."""

import abc
from collections.abc import Callable

from torch import Tensor

from scorefield.sde_lib import expand, predict_noise
from scorefield.sde_lib.denoiser import BoundDenoiser, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.scales import Scales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Solver
from scorefield.solvers.variables import IntegrationVariable

State = tuple[Tensor, ...]
Rows = slice | Tensor  # of the batch, at which a field is evaluated
ALL = slice(None)
Field = Callable[[Scales, State, Rows], State]


def probability_flow(denoiser: DenoiserLike, x: Tensor, at: Scales) -> Tensor:
    """dx/dt = f x - g^2 score / 2 = f x + g^2 eps / (2 sigma), shape (B, *D)  (Song et al. 2021, Eq. 13)."""
    eps = predict_noise(denoiser, x, at.alpha, at.sigma)
    return expand(at.drift, x) * x + expand(at.diffusion**2 / (2 * at.sigma), x) * eps


def flow_of(denoiser: BoundDenoiser) -> Field:
    """The probability flow of a denoiser as a field of the state (x,)."""

    def field(at: Scales, state: State, rows: Rows) -> State:
        return (probability_flow(denoiser.take(rows), state[0], at),)

    return field


def in_variable(field: Field, variable: IntegrationVariable) -> Field:
    """The field in an integration variable c:  d state / dc,  of the state that `enter` returns."""

    def slope(at: Scales, state: State, rows: Rows) -> State:
        inside, scaling = leave(state, variable, at), variable.scaling(at)
        velocity, *divergences = field(at, inside, rows)
        if scaling is not None:
            rate = variable.log_scaling_rate(at)
            velocity = (velocity - expand(rate, velocity) * inside[0]) / expand(scaling, velocity)
            divergences = [d - dims(velocity) * expand(rate, d) for d in divergences]
        derivative = variable.derivative(at)
        return tuple(k / expand(derivative, k) for k in (velocity, *divergences))

    return slope


def enter(state: State, variable: IntegrationVariable, at: Scales) -> State:
    """The state that is integrated: y = x / scaling, and the integrals of its divergence, c - D log scaling."""
    scaling = variable.scaling(at)
    if scaling is None:
        return state
    x, *integrals = state
    return (x / expand(scaling, x), *(c - dims(x) * expand(scaling.log(), c) for c in integrals))


def leave(state: State, variable: IntegrationVariable, at: Scales) -> State:
    """The inverse of `enter`."""
    scaling = variable.scaling(at)
    if scaling is None:
        return state
    y, *integrals = state
    return (y * expand(scaling, y), *(c + dims(y) * expand(scaling.log(), c) for c in integrals))


def dims(x: Tensor) -> int:
    """The number of dimensions of a sample."""
    return x[0].numel() if len(x) else 0


class FlowSolver(Solver):
    """A solver that integrates any field along a path, the probability flow being one."""

    @abc.abstractmethod
    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """The state of  d state / dt = field(scales at t, state, rows),  from the schedule's first time to its last.

        The state is a tuple of x (B, *D) and of integrals of the field's divergence (B, ...), if any. The field gets
        the state of the rows that it is called with.
        """

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        return self.integrate(flow_of(denoiser), (x,), schedule, on_step)[0]

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        """One interval of the grid, for composition with a corrector."""
        return self.run(denoiser, x, schedule.interval(i), noise, None), None
