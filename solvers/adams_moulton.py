"""Adams-Bashforth-Moulton on any field along a path: the flow with its divergence, for few evaluations."""

from dataclasses import dataclass

import torch

from solvers import clocks
from solvers.clocks import Clock, Saturated
from solvers.exponential import polynomial
from solvers.flow import ALL, Field, FlowSolver, State, enter, leave, on_clock
from solvers.schedule import Schedule
from solvers.solver import OnStep, Progress


@dataclass(frozen=True)
class AdamsMoulton(FlowSolver):
    """Predict by the polynomial through the last slopes, evaluate, correct by that through the new one as well (PEC).

        y' = y + sum_j k_j int L_j(c) dc

    with k = dy/dc and L_j the Lagrange polynomials on the last `order` readings of the clock, whatever their spacing.
    One evaluation a step and one at the end. Orders to 3 are begun by the lower ones, whose errors the correction
    takes away; the fourth by two steps of Kutta's third-order method, for four evaluations more. For likelihoods: the
    flow's divergence is integrated beside x. To sample alone `Adams` is better, which has the flow's linear part exact
    (Hairer, Norsett and Wanner 1993, Section III.1 and III.5).

    Args:
        order: 1 to 4.
        clock: of the steps and of the state (`RungeKutta`). By default y = x / sqrt(sigma^2 + (alpha / 2)^2), for data
            in [-1, 1], in the saturated log-SNR; its grid is `grids.saturated(sde, steps, 0.02, 10.0)`.

    Raises:
        ValueError: for another order or clock.
    """

    order: int = 3
    clock: str | Clock = Saturated(low=0.02, high=10.0, spread=0.5)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"expected AdamsMoulton of order 1 to 4, got {self.order!r}")
        clocks.find(self.clock)

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """See `FlowSolver.integrate`."""
        clock = clocks.find(self.clock)
        readings = schedule.once(clock, lambda: clock.reading(schedule.sde, schedule.ts).tolist())
        slope, steps = on_clock(field, clock), len(schedule) - 1
        y = enter(state, clock, schedule[0])
        slopes = [slope(schedule[0], y, ALL)]  # newest first
        for i in range(steps):
            past, span = min(self.order, i + 1), (readings[i], readings[i + 1])
            if self.order == 4 and i < 2:
                y = _kutta(slope, y, slopes[0], schedule, i, clock, span[1] - span[0])
                slopes = [slope(schedule[i + 1], y, ALL), *slopes]
            else:
                predicted = _along(y, slopes, polynomial([readings[i - j] for j in range(past)], *span))
                slopes = [slope(schedule[i + 1], predicted, ALL), *slopes[: self.order - 1]]
                knots = [readings[i + 1 - j] for j in range(len(slopes))]
                y = _along(y, slopes, polynomial(knots, *span))
            if on_step is not None:
                x = leave(y, clock, schedule[i + 1])[0]
                on_step(Progress(i + 1, steps, float(schedule.ts[i + 1]), x))
        return leave(y, clock, schedule[steps])


def _kutta(slope: Field, y: State, first: State, schedule: Schedule, i: int, clock: Clock, h: float) -> State:
    """Y after a step of Kutta's third-order method from time i, where the slope is `first`."""
    middle = slope(schedule.within(i, 0.5, clock), _along(y, [first], [h / 2]), ALL)
    end = slope(schedule[i + 1], _along(y, [first, middle], [-h, 2 * h]), ALL)
    return _along(y, [first, middle, end], [h / 6, 4 * h / 6, h / 6])


def _along(state: State, slopes: list[State], weights: list[float]) -> State:
    """State + sum_j weights_j slopes_j."""
    for weight, slope in zip(weights, slopes, strict=False):
        state = tuple(torch.add(y, k, alpha=weight) for y, k in zip(state, slope, strict=True))
    return state
