"""Runge-Kutta on the probability flow, on the grid that is given, in the clock that is asked for."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import variables
from scorefield.solvers.ode.flow import ALL, Field, FlowSolver, State, enter, flow_of, leave, on_clock
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import OnStep, Progress
from scorefield.solvers.variables import IntegrationVariable


@dataclass(frozen=True)
class RungeKutta(FlowSolver):
    """k_j = F(c + a_j h, y + h sum_l A_jl k_l),  y' = y + h sum_j b_j k_j,  dy/dc = F the flow in a clock c.

    Args:
        clock: "time", "sigma" (of x / alpha, as Karras et al. 2022 integrate), "log_snr", "saturated", or an
            `IntegrationVariable`.
    """

    clock: str | IntegrationVariable = "time"

    nodes: ClassVar[tuple[float, ...]]  # a
    matrix: ClassVar[tuple[tuple[float, ...], ...]]  # A, below the diagonal
    weights: ClassVar[tuple[float, ...]]  # b

    def __post_init__(self) -> None:
        variables.find(self.clock)

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """See `FlowSolver.integrate`."""
        for i in range(len(schedule) - 1):
            state = self.advance(field, state, schedule, i)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), state[0]))
        return state

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        return self.advance(flow_of(denoiser), (x,), schedule, i)[0], None

    def advance(self, field: Field, state: State, schedule: Schedule, i: int) -> State:
        """The state at time i of the schedule, taken to time i + 1."""
        clock = variables.find(self.clock)
        readings = schedule.once(clock, lambda: clock.reading(schedule.sde, schedule.ts).tolist())
        h, slope = readings[i + 1] - readings[i], on_clock(field, clock)
        start, slopes = enter(state, clock, schedule[i]), list[State]()
        for node, row in zip(self.nodes, self.matrix, strict=True):
            at = schedule[i + round(node)] if node in (0, 1) else schedule.within(i, node, clock)
            slopes.append(slope(at, _along(start, h, row, slopes), ALL))
        return leave(_along(start, h, self.weights, slopes), clock, schedule[i + 1])


@dataclass(frozen=True)
class Euler(RungeKutta):
    """x' = x + h k1: order 1, one evaluation a step."""

    nodes = (0.0,)
    matrix = ((),)
    weights = (1.0,)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """x' = x + h k2, k2 in the middle of the Euler step: order 2, two evaluations a step."""

    nodes = (0.0, 0.5)
    matrix = ((), (0.5,))
    weights = (0.0, 1.0)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """x' = x + h (k1 + k2) / 2, k2 at the Euler step's end: order 2, two evaluations a step.

    Karras et al. 2022, Alg. 1.
    """

    nodes = (0.0, 1.0)
    matrix = ((), (1.0,))
    weights = (0.5, 0.5)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method: order 4, four evaluations a step."""

    nodes = (0.0, 0.5, 0.5, 1.0)
    matrix = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def _along(state: State, h: float, weights: tuple[float, ...], slopes: list[State]) -> State:
    """State + h sum_j weights_j slopes_j."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            state = tuple(y + h * weight * k for y, k in zip(state, slope, strict=True))
    return state
