"""The probability flow, written once: sampling, encoding and likelihood all follow it."""

import abc
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sde_lib import expand, predict_noise
from sde_lib.broadcast import DenoiserLike, of_rows
from sde_lib.sde import Noise
from solvers.clocks import Clock
from solvers.schedule import Scales, Schedule
from solvers.solver import OnStep, Solver

State = tuple[Tensor, ...]
Rows = slice | Tensor  # which rows of the batch a field is asked about
Field = Callable[[Scales, State, Rows], State]


def probability_flow(denoiser: DenoiserLike, x: Tensor, at: Scales) -> Tensor:
    """dx/dt = f x - g^2 score / 2 = f x + g^2 eps / (2 sigma), shape (B, *D)  (Song et al. 2021, Eq. 13)."""
    eps = predict_noise(denoiser, x, at.alpha, at.sigma)
    return expand(at.drift, x) * x + expand(at.diffusion**2 / (2 * at.sigma), x) * eps


def flow_of(denoiser: DenoiserLike) -> Field:
    """The probability flow of a denoiser as a field of the state (x,)."""

    def field(at: Scales, state: State, rows: Rows) -> State:
        return (probability_flow(of_rows(denoiser, rows), state[0], at),)

    return field


def on_clock(field: Field, clock: Clock) -> Field:
    """The field in a clock's units, d state / dc, of the state that `enter` gives."""

    def slope(at: Scales, state: State, rows: Rows) -> State:
        inside = leave(state, clock, at)
        out = field(at, inside, rows)
        if clock.scaled:
            alpha, drift = expand(at.alpha, out[0]), expand(at.drift, out[0])
            out = ((out[0] - drift * inside[0]) / alpha, *out[1:])
        rate = clock.rate(at)
        return tuple(k / expand(rate, k) for k in out)

    return slope


def enter(state: State, clock: Clock, at: Scales) -> State:
    """The state as its clock has it: x / alpha for x where the clock is `scaled`."""
    return (state[0] / expand(at.alpha, state[0]), *state[1:]) if clock.scaled else state


def leave(state: State, clock: Clock, at: Scales) -> State:
    """Back from `enter`."""
    return (state[0] * expand(at.alpha, state[0]), *state[1:]) if clock.scaled else state


class FlowSolver(Solver):
    """A solver that integrates any field along a path, the probability flow being one."""

    @abc.abstractmethod
    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """The state of  d state / dt = field(scales at t, state, rows),  from the schedule's first time to its last.

        The state is a tuple of tensors that share the batch dimension, or those rows of it that the field is told.
        """

    def run(self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        return self.integrate(flow_of(denoiser), (x,), schedule, on_step)[0]

    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        """One interval of the grid, for composition with a corrector."""
        return self.run(denoiser, x, schedule.interval(i), noise, None), None
