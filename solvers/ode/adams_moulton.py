"""Adams-Bashforth-Moulton for the flow with its divergence: likelihoods for few evaluations."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scorefield.sde_lib import expand
from scorefield.solvers import variables
from scorefield.solvers.multistep.exponential import POINTS, WEIGHTS, lagrange, polynomial
from scorefield.solvers.ode.flow import ALL, Field, FlowSolver, State, dims
from scorefield.solvers.schedule import ScalarScales, Scales, Schedule
from scorefield.solvers.solver import OnStep, Progress
from scorefield.solvers.variables import IntegrationVariable, SoftClippedLogSNR


@dataclass(frozen=True)
class AdamsMoulton(FlowSolver):
    """Predict by the polynomial through the last evaluations, evaluate, correct by that through the new one too (PEC).

        y = x / sqrt(sigma^2 + (alpha s)^2),    tan theta = sigma / (alpha s)
        y' = y + sum_j v_j int L_j(c) dtheta,   I' = I + sum_j k_j int L_j(c) dc

    v = dy / dtheta is the velocity of Salimans and Ho 2022 ("Progressive distillation", Eq. 9) for data of standard
    deviation s: as data and as noise it is smooth along the whole path, and its integral is taken under the exact
    angle, as `Adams` does under the log-SNR. k = dI / dc is the slope of the divergence's integral in the clock, for y.
    L_j are the Lagrange polynomials on the last `order` readings of the clock, whatever their spacing (Hairer, Norsett
    and Wanner 1993, Section III.1 and III.5). One evaluation a step and one at the end. Order 1 and 2 begin with order
    1, whose error the correction takes away; 3 and 4 with a step over its middle, for two evaluations more.

    Args:
        order: 1 to 4.
        clock: of the steps and the divergence, and whose `spread`, if any, is s (else s is 1). By default the saturated
            log-SNR for data in [-1, 1]; its grid is `grids.by_clock(sde, steps, clock)`.

    Raises:
        ValueError: for another order or clock.
    """

    order: int = 3
    clock: str | IntegrationVariable = SoftClippedLogSNR(low=0.02, high=10.0, spread=0.5)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"expected AdamsMoulton of order 1 to 4, got {self.order!r}")
        variables.find(self.clock)

    def evaluations(self, steps: int) -> int:
        """How many evaluations so many steps take."""
        return steps + (3 if self.order > 2 else 1)

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """See `FlowSolver.integrate`."""
        clock, steps = variables.find(self.clock), len(schedule) - 1
        state = _sized(state, clock, schedule[0], -1)
        known = [_look(field, state, clock, schedule, schedule.host(0), schedule[0])]  # newest first
        for i in range(steps):
            start, end, at = schedule.host(i), schedule.host(i + 1), schedule[i + 1]
            if self.order > 2 and i == 0:
                known = _over_the_middle(field, state, clock, schedule, known)
            else:
                predicted = _through(known[: self.order], state, clock, schedule, start, end)
                known = [_look(field, predicted, clock, schedule, end, at), *known[: max(self.order - 1, 1)]]
            state = _through(known, state, clock, schedule, start, end)
            if on_step is not None:
                on_step(Progress(i + 1, steps, end.t, state[0]))
        return _sized(state, clock, schedule[steps], 1)


class _Known(NamedTuple):
    """An evaluation: where, what the clock read, v, and the slopes of the divergences' integrals."""

    at: ScalarScales
    reading: float
    slopes: State


def _look(
    field: Field, state: State, clock: IntegrationVariable, schedule: Schedule, host: ScalarScales, at: Scales
) -> _Known:
    x, *integrals = state
    velocity, *divergences = field(at, (x, *integrals), ALL)
    spread, n, size = _spread(clock), host.sigma / host.alpha, _size(clock, host)
    # dy/dt = (velocity - d log size / dt x) / size, by dtheta/dt = (dn/dt) spread / (n^2 + spread^2)
    rate = host.diffusion**2 / (2 * host.sigma * host.alpha) * spread / (n**2 + spread**2)
    growth = host.drift + (host.diffusion / size) ** 2 / 2
    turn = torch.add(velocity, x, alpha=-growth) * (1 / (size * rate))
    shrink, pace = clock.growth(at), clock.rate(at)
    slopes = ((k - dims(x) * expand(shrink, k)) / expand(pace, k) for k in divergences)
    return _Known(host, _reading(clock, schedule, host), (turn, *slopes))


def _reading(clock: IntegrationVariable, schedule: Schedule, host: ScalarScales) -> float:
    return schedule.once(
        ("reading", clock, host.t),
        lambda: float(clock.reading(schedule.sde, torch.tensor(host.t, dtype=torch.float64))),
    )


def _through(
    known: list[_Known],
    state: State,
    clock: IntegrationVariable,
    schedule: Schedule,
    start: ScalarScales,
    end: ScalarScales,
) -> State:
    """The state at the end, by the polynomial through what is known."""

    def numbers() -> tuple[float, list[float], list[float]]:
        knots = [k.reading for k in known]
        ends = [_reading(clock, schedule, host) for host in (start, end)]
        sizes = [_size(clock, host) for host in (start, end)]
        turns = _under_the_angle(clock, schedule, knots, start, end)
        return sizes[1] / sizes[0], [sizes[1] * weight for weight in turns], polynomial(knots, *ends)

    keep, to_x, to_integrals = schedule.once((clock, start.t, end.t, *(k.at.t for k in known)), numbers)
    x, *integrals = state
    slopes = list(zip(*(k.slopes for k in known), strict=True))
    return (
        _sum(keep * x, to_x, slopes[0]),
        *(_sum(c, to_integrals, ks) for c, ks in zip(integrals, slopes[1:], strict=True)),
    )


def _under_the_angle(
    clock: IntegrationVariable, schedule: Schedule, knots: list[float], start: ScalarScales, end: ScalarScales
) -> list[float]:
    """Int L_j(c) dtheta from start to end."""
    spread = _spread(clock)
    angles = [math.atan(host.sigma / host.alpha / spread) for host in (start, end)]
    half = (angles[1] - angles[0]) / 2
    at = angles[0] + half * (POINTS + 1)
    t = schedule.sde.time(torch.from_numpy(-2 * np.log(spread * np.tan(at))))
    bases = lagrange(knots, clock.reading(schedule.sde, t).numpy())
    return [float(half * WEIGHTS @ basis) for basis in bases]


def _spread(clock: IntegrationVariable) -> float:
    return getattr(clock, "spread", None) or 1.0


def _size(clock: IntegrationVariable, host: ScalarScales) -> float:
    return math.hypot(host.sigma, host.alpha * _spread(clock))


def _over_the_middle(
    field: Field, state: State, clock: IntegrationVariable, schedule: Schedule, known: list[_Known]
) -> list[_Known]:
    """What is known after the first step, with its middle, to the third order."""
    start, middle, end = schedule.host(0), schedule.host_within(0, 0.5, clock), schedule.host(1)
    halfway = schedule.within(0, 0.5, clock)
    for nodes in (1, 2):
        there = _through(known[-nodes:], state, clock, schedule, start, middle)
        known = [_look(field, there, clock, schedule, middle, halfway), known[-1]]
    predicted = _through(known, state, clock, schedule, start, end)
    return [_look(field, predicted, clock, schedule, end, schedule[1]), *known]


def _sized(state: State, clock: IntegrationVariable, at: Scales, sign: int) -> State:
    """The integrals of x / size's divergence, less by dims log size than x's own; or, with the sign, back."""
    size = clock.size(at)
    if size is None:
        return state
    x, *integrals = state
    return (x, *(c + sign * dims(x) * expand(size.log(), c) for c in integrals))


def _sum(y: Tensor, weights: tuple[float, ...] | list[float], slopes: tuple[Tensor, ...]) -> Tensor:
    for weight, k in zip(weights, slopes, strict=True):
        y = torch.add(y, k, alpha=weight)
    return y
