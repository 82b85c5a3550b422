"""Runge-Kutta methods for the probability flow, on a grid, in any integration variable."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import variables
from scorefield.solvers.ode.flow import ALL, Field, FlowSolver, State, enter, flow_of, in_variable, leave
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Progress
from scorefield.solvers.variables import IntegrationVariable


@dataclass(frozen=True)
class RungeKutta(FlowSolver):
    """k_j = F(c + a_j h, y + h sum_l A_jl k_l),  y' = y + h sum_j b_j k_j,  dy/dc = F the flow in a variable c.

    Args:
        variable: integration variable: "time", "sigma" (of x / alpha, as in Karras et al. 2022), "log_snr",
            "soft_clipped", or an `IntegrationVariable`.
    """

    variable: str | IntegrationVariable = "time"

    nodes: ClassVar[tuple[float, ...]]  # a
    matrix: ClassVar[tuple[tuple[float, ...], ...]]  # A, below the diagonal
    weights: ClassVar[tuple[float, ...]]  # b

    def __post_init__(self) -> None:
        variables.find(self.variable)

    @property
    def elementwise(self) -> bool:
        return variables.find(self.variable) == variables.VARIABLES["time"]

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """See `FlowSolver.integrate`."""
        for i in range(len(schedule) - 1):
            state = self.advance(field, state, schedule, i)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), state[0]))
        return state

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        return self.advance(flow_of(denoiser), (x,), schedule, i)[0], None

    def advance(self, field: Field, state: State, schedule: Schedule, i: int) -> State:
        """The state at time i of the schedule, taken to time i + 1."""
        variable = variables.find(self.variable)
        values = schedule.cached(variable, lambda: variable.value(schedule.sde, schedule.ts).tolist())
        h, slope = values[i + 1] - values[i], in_variable(field, variable)
        start, slopes = enter(state, variable, schedule[i]), list[State]()
        for node, row in zip(self.nodes, self.matrix, strict=True):
            at = schedule[i + round(node)] if node in (0, 1) else schedule.between(i, node, variable)
            slopes.append(slope(at, _along(start, h, row, slopes), ALL))
        return leave(_along(start, h, self.weights, slopes), variable, schedule[i + 1])


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
