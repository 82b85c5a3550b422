"""Runge-Kutta on the probability flow, in time, on the grid that is given."""

import abc
from dataclasses import dataclass

from torch import Tensor

from solvers.flow import Field, FlowSolver, State
from solvers.schedule import Schedule
from solvers.solver import OnStep, Progress

ALL = slice(None)


class _OnGrid(FlowSolver):
    """A one-step method: it says how the state changes over an interval."""

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        for i in range(len(schedule) - 1):
            state = self.advance(field, state, schedule, i)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), state[0]))
        return state

    @abc.abstractmethod
    def advance(self, field: Field, state: State, schedule: Schedule, i: int) -> State:
        """The state at time i of the schedule, taken to time i + 1."""


@dataclass(frozen=True)
class Euler(_OnGrid):
    """x' = x + h k(t, x): order 1, one evaluation a step."""

    def advance(self, field: Field, state: State, schedule: Schedule, i: int) -> State:
        h = schedule[i + 1].t - schedule[i].t
        return _along(state, h, field(schedule[i], state, ALL))


@dataclass(frozen=True)
class Heun(_OnGrid):
    """x' = x + h (k1 + k2) / 2, k2 at the Euler step's end: order 2, two evaluations a step.

    Karras et al. 2022, Alg. 1.
    """

    def advance(self, field: Field, state: State, schedule: Schedule, i: int) -> State:
        h = schedule[i + 1].t - schedule[i].t
        k1 = field(schedule[i], state, ALL)
        k2 = field(schedule[i + 1], _along(state, h, k1), ALL)
        return _along(state, h / 2, tuple(a + b for a, b in zip(k1, k2, strict=True)))


def _along(state: State, h: Tensor, slope: State) -> State:
    return tuple(y + h * k for y, k in zip(state, slope, strict=True))
