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
from scorefield.solvers.scales import ScalarScales, Scales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import OnStep, Progress
from scorefield.solvers.variables import IntegrationVariable, SoftClippedLogSNR


@dataclass(frozen=True)
class AdamsMoulton(FlowSolver):
    """Predict by the polynomial through the last evaluations, evaluate, correct by that through the new one too (PEC).

        y = x / sqrt(sigma^2 + (alpha s)^2),    tan theta = sigma / (alpha s)
        y' = y + sum_j v_j int L_j(c) dtheta,   I' = I + sum_j k_j int L_j(c) dc

    v = dy / dtheta is the velocity of Salimans and Ho 2022 ("Progressive distillation", Eq. 9) for data of standard
    deviation s. It is smooth along the path from end to end, for data and for noise. Its integral is exact in the
    angle, as that of `Adams` is in the log-SNR. k = dI / dc is the slope of the divergence's integral, for y.
    L_j are the Lagrange polynomials on the last `order` values of the variable, for any spacing (Hairer, Norsett and
    Wanner 1993, Section III.1 and III.5). One evaluation a step and one at the end. Orders 1 and 2 start with order 1,
    whose error the correction removes. Orders 3 and 4 start with a step over its middle, by two evaluations more.

    Args:
        order: 1 to 4.
        variable: integration variable of the steps and the divergence. Its `spread` is s, or 1 where it has none. By
            default `SoftClippedLogSNR` for data in [-1, 1]. Its grid is `grids.uniform_in(sde, steps, variable)`.

    Raises:
        ValueError: for another order or variable.
    """

    order: int = 3
    variable: str | IntegrationVariable = SoftClippedLogSNR(low=0.02, high=10.0, spread=0.5)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"expected AdamsMoulton of order 1 to 4, got {self.order!r}")
        variables.find(self.variable)

    def evaluations(self, steps: int) -> int:
        """The number of evaluations of a sample in this many steps."""
        return steps + (3 if self.order > 2 else 1)

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """See `FlowSolver.integrate`."""
        return self._integrate(field, state, schedule, on_step, None)

    def integrate_with_error(
        self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None, *, integrals: bool = True
    ) -> tuple[State, Tensor]:
        """The end's state, and an estimate of each sample's error of the log-density, in nats (B,); no evaluations.

        Let S = grad log p(y) = -(y + v cot theta). A displacement d of y changes log p by S . d, and one of the
        divergence's integral by as much. With P, C and F of step i the predicted y, the corrected one, and the one
        through an evaluation more, and I its integral, the error of a step is

            e_i = I_C - I_F + S_i . (C - F) - (S_i - S_(i-1)) . (P - C)

        The last term stands for slopes that are evaluated at P and not at C: along the flow of a density
        dS / dtheta = -(grad v)^T S - grad(div v). Terms of higher order are about 10 / n of it in n steps.
        The estimate is (1 + 10 / n) max(|sum e_i|, sum |e_i| / 4). Mixtures of 2 to 3,072 dimensions set the numbers:
        hardly an error is larger, however large the steps are.

        Args:
            field: the flow with its divergence.
            state: at the first time.
            schedule: a rising grid.
            on_step: see `Solver`.
            integrals: leave out I and S . (C - F), for divergences by probes that change from step to step: the
                estimate is then the sum of the last terms' sizes.
        """
        error = _ErrorOfLogDensity(variables.find(self.variable), schedule, integrals)
        end = self._integrate(field, state, schedule, on_step, error)
        return end, error.estimate

    def _integrate(
        self, field: Field, state: State, schedule: Schedule, on_step: OnStep, error: "_ErrorOfLogDensity | None"
    ) -> State:
        variable, steps, order = variables.find(self.variable), len(schedule) - 1, self.order
        state = _rescaled(state, variable, schedule[0], -1)
        known = [_evaluate(field, state, variable, schedule, schedule.scalars(0), schedule[0])]  # newest first
        if error is not None:
            error.begin(known[0], state[0])
        for i in range(steps):
            start, end, at = schedule.scalars(i), schedule.scalars(i + 1), schedule[i + 1]
            if order > 2 and i == 0:
                predicted, known = _over_the_middle(field, state, variable, schedule, known)
            else:
                predicted = _through(known[:order], state, variable, schedule, start, end)
                kept = order if error is not None else order - 1
                known = [_evaluate(field, predicted, variable, schedule, end, at), *known[: max(kept, 1)]]
            corrected = _through(known[: max(order, 2)], state, variable, schedule, start, end)
            if error is not None:
                error.add(known, predicted, corrected, state, start, end)
            state = corrected
            if on_step is not None:
                on_step(Progress(i + 1, steps, end.t, state[0]))
        return _rescaled(state, variable, schedule[steps], 1)


class _Known(NamedTuple):
    """An evaluation: its scales, the value of the variable, v, and the slopes of the divergences' integrals."""

    at: ScalarScales
    value: float
    slopes: State


def _evaluate(
    field: Field, state: State, variable: IntegrationVariable, schedule: Schedule, scalars: ScalarScales, at: Scales
) -> _Known:
    x, *integrals = state
    velocity, *divergences = field(at, (x, *integrals), ALL)
    spread, n, size = _spread(variable), scalars.sigma / scalars.alpha, _size(variable, scalars)
    # dy/dt = (velocity - d log size / dt x) / size, by dtheta/dt = (dn/dt) spread / (n^2 + spread^2)
    rate = scalars.diffusion**2 / (2 * scalars.sigma * scalars.alpha) * spread / (n**2 + spread**2)
    growth = scalars.drift + (scalars.diffusion / size) ** 2 / 2
    turn = torch.add(velocity, x, alpha=-growth) * (1 / (size * rate))
    scaling_rate, derivative = variable.log_scaling_rate(at), variable.derivative(at)
    slopes = ((k - dims(x) * expand(scaling_rate, k)) / expand(derivative, k) for k in divergences)
    return _Known(scalars, _value(variable, schedule, scalars), (turn, *slopes))


class _ErrorOfLogDensity:
    """The sums of `AdamsMoulton.integrate_with_error` over the steps that were added."""

    def __init__(self, variable: IntegrationVariable, schedule: Schedule, integrals: bool) -> None:
        self.variable, self.schedule, self.integrals = variable, schedule, integrals
        self._sum = self._size = self._gradient = torch.zeros(0)

    @property
    def estimate(self) -> Tensor:
        """(B,), in nats."""
        if not self.integrals:
            return self._size
        return (1 + 10 / (len(self.schedule) - 1)) * torch.maximum(self._sum.abs(), self._size / 4)

    def begin(self, known: _Known, x: Tensor) -> None:
        self._sum = self._size = x.new_zeros(len(x))
        self._gradient = self._gradient_at(known, x)

    def add(
        self, known: list[_Known], predicted: State, corrected: State, state: State, start: ScalarScales,
        end: ScalarScales,
    ) -> None:  # fmt: skip
        """A step from `state`, with the evaluations that its correction knows, and one more if there is one."""
        gradient, size = self._gradient_at(known[0], predicted[0]), _size(self.variable, end)
        error = -_dots(gradient - self._gradient, predicted[0] - corrected[0]) / size
        if self.integrals and start.t != self.schedule.scalars(0).t:
            finer = _through(known, state, self.variable, self.schedule, start, end)
            error = error + _dots(gradient, corrected[0] - finer[0]) / size
            error = error + sum((c - f).mean(1) for c, f in zip(corrected[1:], finer[1:], strict=True))
        error = error.detach()
        self._sum, self._size, self._gradient = self._sum + error, self._size + error.abs(), gradient

    def _gradient_at(self, known: _Known, x: Tensor) -> Tensor:
        cotangent = _spread(self.variable) * known.at.alpha / known.at.sigma
        return -(x / _size(self.variable, known.at) + known.slopes[0] * cotangent).detach()


def _dots(a: Tensor, b: Tensor) -> Tensor:
    dots: Tensor = (a * b).flatten(1).sum(1)
    return dots


def _value(variable: IntegrationVariable, schedule: Schedule, scalars: ScalarScales) -> float:
    return schedule.cached(
        ("value", variable, scalars.t),
        lambda: float(variable.value(schedule.sde, torch.tensor(scalars.t, dtype=torch.float64))),
    )


def _through(
    known: list[_Known],
    state: State,
    variable: IntegrationVariable,
    schedule: Schedule,
    start: ScalarScales,
    end: ScalarScales,
) -> State:
    """The state at the end, by the polynomial through the known evaluations."""

    def numbers() -> tuple[float, list[float], list[float]]:
        knots = [k.value for k in known]
        ends = [_value(variable, schedule, scalars) for scalars in (start, end)]
        sizes = [_size(variable, scalars) for scalars in (start, end)]
        turns = _under_the_angle(variable, schedule, knots, start, end)
        return sizes[1] / sizes[0], [sizes[1] * weight for weight in turns], polynomial(knots, *ends)

    of_x, to_x, to_integrals = schedule.cached((variable, start.t, end.t, *(k.at.t for k in known)), numbers)
    x, *integrals = state
    slopes = list(zip(*(k.slopes for k in known), strict=True))
    return (
        _sum(of_x * x, to_x, slopes[0]),
        *(_sum(c, to_integrals, ks) for c, ks in zip(integrals, slopes[1:], strict=True)),
    )


def _under_the_angle(
    variable: IntegrationVariable, schedule: Schedule, knots: list[float], start: ScalarScales, end: ScalarScales
) -> list[float]:
    """Int L_j(c) dtheta from start to end."""
    spread = _spread(variable)
    angles = [math.atan(scalars.sigma / scalars.alpha / spread) for scalars in (start, end)]
    half = (angles[1] - angles[0]) / 2
    at = angles[0] + half * (POINTS + 1)
    t = schedule.sde.time(torch.from_numpy(-2 * np.log(spread * np.tan(at))))
    bases = lagrange(knots, variable.value(schedule.sde, t).numpy())
    return [float(half * WEIGHTS @ basis) for basis in bases]


def _spread(variable: IntegrationVariable) -> float:
    return getattr(variable, "spread", None) or 1.0


def _size(variable: IntegrationVariable, scalars: ScalarScales) -> float:
    return math.hypot(scalars.sigma, scalars.alpha * _spread(variable))


def _over_the_middle(
    field: Field, state: State, variable: IntegrationVariable, schedule: Schedule, known: list[_Known]
) -> tuple[State, list[_Known]]:
    """The predicted end of the first step, and the evaluations at its start, middle and end, to the third order."""
    start, middle, end = schedule.scalars(0), schedule.scalars_between(0, 0.5, variable), schedule.scalars(1)
    halfway = schedule.between(0, 0.5, variable)
    for nodes in (1, 2):
        there = _through(known[-nodes:], state, variable, schedule, start, middle)
        known = [_evaluate(field, there, variable, schedule, middle, halfway), known[-1]]
    predicted = _through(known, state, variable, schedule, start, end)
    return predicted, [_evaluate(field, predicted, variable, schedule, end, schedule[1]), *known]


def _rescaled(state: State, variable: IntegrationVariable, at: Scales, sign: int) -> State:
    """The integrals of the divergence of x / scaling, x's own minus D log scaling; sign = 1 for the inverse."""
    scaling = variable.scaling(at)
    if scaling is None:
        return state
    x, *integrals = state
    return (x, *(c + sign * dims(x) * expand(scaling.log(), c) for c in integrals))


def _sum(y: Tensor, weights: tuple[float, ...] | list[float], slopes: tuple[Tensor, ...]) -> Tensor:
    for weight, k in zip(weights, slopes, strict=True):
        y = torch.add(y, k, alpha=weight)
    return y
