"""A solver and a grid for a tolerance, chosen on a few pilot samples of the model at hand."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from likelihood.divergence import Divergence, Hutchinson
from likelihood.flow import FlowWithDivergence
from sde_lib import SDE
from sde_lib.broadcast import DenoiserLike, of_rows
from sde_lib.sde import Noise
from solvers import AdamsMoulton, PerSampleNoise, Scales, Schedule, grids
from solvers.clocks import Saturated
from solvers.exponential import polynomial
from solvers.flow import Rows, State

Array = NDArray[np.float64]

PILOTS = 32
SLACK = 4 / 3  # of a difference from twice the steps, which may have a quarter of the error themselves
TRIED = 3  # clocks that are tried out, of those that the record finds best
RECORDED = 96  # steps of the way that is recorded
LADDER = (12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
LOWS, HIGHS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1), (2.5, 5.0, 10.0, 30.0)
SPREADS = (0.5, 1.0)  # of the data's standard deviation
PACES = (0.0, 2.0)  # over the whole way


@dataclass(frozen=True)
class Plan:
    """How to score a data set.

    Args:
        solver: with the clock that was chosen.
        ts: its rising grid.
        tolerance: that was asked for, in bits/dim.
        error: that the solver is estimated to leave in a value, in bits/dim: the largest difference from twice as many
            steps among the pilots, and a third more, for the error that these leave themselves.
        bias: the mean of that difference, signed: what it leaves in the mean of a set.
        nfe: evaluations of a sample under this plan.
        spent: evaluations that the choice took, of a pilot.
    """

    solver: AdamsMoulton
    ts: Tensor
    tolerance: float
    error: float
    bias: float
    nfe: int
    spent: int

    @property
    def met(self) -> bool:
        """Whether the tolerance is."""
        return self.error <= self.tolerance


def plan_for(
    denoiser: DenoiserLike,
    sde: SDE,
    x: Tensor,
    tolerance: float,
    *,
    divergence: Divergence | None = None,
    noise: Noise = torch.randn_like,
    most: int = LADDER[-1],
) -> Plan:
    """The fewest steps of `AdamsMoulton`, and the clock for them, that keep a value's error below the tolerance.

    The flow is recorded once, in fine steps. A clock then costs no evaluation to judge: on the record it is a
    quadrature, whose error is known. The best one is tried out, at so many steps and at twice as many, until the
    difference is below the tolerance. Pilots keep their probes, so that their differences are the solver's.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x: samples to try on; the first 32 serve.
        tolerance: in bits/dim, of a value's error.
        divergence: as it will be used.
        noise: source of the probes.
        most: steps to end with, met or not.

    Raises:
        ValueError: for a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"expected a positive tolerance in bits/dim, got {tolerance}")
    pilots = _Pilots(denoiser, sde, x[:PILOTS], divergence or Hutchinson(), noise)
    if len(x) == 0:
        solver = AdamsMoulton()
        return Plan(solver, grids.saturated(sde, 1).flip(0), tolerance, 0.0, 0.0, 2, 0)
    record = pilots.recorded()
    steps, tried = min(_first_rung(record, tolerance), most), dict[int, tuple[AdamsMoulton, float, float]]()
    while True:
        tried[steps] = pilots.best(record.best(steps), steps)
        following = _next(tried, tolerance, most)
        if following is None:
            break
        steps = following
    good = [n for n, (_, error, _) in tried.items() if error <= tolerance]
    steps = min(good) if good else max(tried)
    solver, error, bias = tried[steps]
    return Plan(solver, pilots.grid(solver, steps), tolerance, error, bias, solver.evaluations(steps), pilots.spent)


def _first_rung(record: "_Record", tolerance: float) -> int:
    return next((n for n in LADDER if record.error(record.best(n)[0], n) <= tolerance), LADDER[-1])


def _next(tried: dict[int, tuple[AdamsMoulton, float, float]], tolerance: float, most: int) -> int | None:
    """More steps where the error is too large, fewer where it is far too small; None when there is nothing to try."""
    good = [n for n, (_, error, _) in tried.items() if error <= tolerance]
    if not good:
        steps = max(tried)
        error = tried[steps][1]
        factor = min(2.0, max(1.15, (error / tolerance) ** (1 / 3))) if math.isfinite(error) else 2.0
        return None if steps >= most else min(most, math.ceil(steps * factor))
    least, bad = min(good), max((n for n in tried if n < min(good)), default=0)
    error = max(tried[least][1], 1e-12)
    lower = max(math.ceil(least * max(0.6, (error / tolerance) ** (1 / 3))), 6)
    return None if lower <= bad or lower >= 0.93 * least or len(tried) > 5 else lower


class _Pilots:
    """A few samples, and what their flow was seen to do."""

    def __init__(self, denoiser: DenoiserLike, sde: SDE, x: Tensor, divergence: Divergence, noise: Noise) -> None:
        self.sde, self.x, self.spent = sde, x, 0
        if isinstance(divergence, Hutchinson):
            divergence = replace(divergence, fresh=False)
        rows = of_rows(denoiser, slice(0, len(x)))
        self.flow = FlowWithDivergence(rows, divergence, False, _first_rows(noise, len(x)))
        self.start = self.flow.begin(x)
        self._solved: dict[tuple[AdamsMoulton, int], Tensor] = {}

    def grid(self, solver: AdamsMoulton, steps: int) -> Tensor:
        assert isinstance(solver.clock, Saturated)
        return grids.by_clock(self.sde, steps, solver.clock).flip(0)

    def recorded(self) -> "_Record":
        solver = AdamsMoulton(3, Saturated(0.01, 10.0, spread=_deviation(self.x)))
        divergences = dict[float, Tensor]()

        def listening(at: Scales, state: State, rows: Rows) -> State:
            slopes: State = self.flow(at, state, rows)
            divergences[float(at.t)] = slopes[1].mean(1).double().cpu()  # the last word, where it is asked again
            return slopes

        with torch.no_grad():
            solver.integrate(listening, self.start, Schedule(self.sde, self.grid(solver, RECORDED), self.x))
        self.spent += solver.evaluations(RECORDED)
        ts = sorted(divergences)
        return _Record(
            self.sde, torch.tensor(ts, dtype=torch.float64), torch.stack([divergences[t] for t in ts]), self.x
        )

    def value(self, solver: AdamsMoulton, steps: int) -> Tensor:
        """Log-densities of the pilots, in nats; the prior's part belongs to it, as x has errors too."""
        if (solver, steps) not in self._solved:
            schedule = Schedule(self.sde, self.grid(solver, steps), self.x)
            with torch.no_grad():
                latent, change = solver.integrate(self.flow, self.start, schedule)
            self.spent += solver.evaluations(steps)
            self._solved[solver, steps] = (self.sde.prior_log_prob(latent) + change.mean(1)).double().cpu()
        return self._solved[solver, steps]

    def best(self, solvers: list[AdamsMoulton], steps: int) -> tuple[AdamsMoulton, float, float]:
        """The solver that twice the steps of the first change least: the largest change and the mean, in bits/dim."""
        reference, found = self.value(solvers[0], 2 * steps), list[tuple[float, float, AdamsMoulton]]()
        for solver in solvers:
            change = (self.value(solver, steps) - reference) / (self.x[0].numel() * math.log(2))
            found.append((SLACK * float(change.abs().max()), -float(change.mean()), solver))
        error, bias, solver = min(found, key=lambda each: each[0])
        return solver, error, bias


class _Record:
    """The divergence along the pilots' ways, as a function of l = log(sigma / alpha): enough to judge a clock by.

    Of x / alpha it is p = (div v - dims f) / (dl / dt), and by a saturated clock c of the spread s

        d log p / dc = (p - dims n^2 / (n^2 + s^2)) / (dc / dl),    n = e^l.
    """

    def __init__(self, sde: SDE, ts: Tensor, divergences: Tensor, x: Tensor) -> None:
        at = Scales.at(sde, ts)
        rate = (at.diffusion / at.sigma) ** 2 / 2
        self.dims, self.deviation, self.length = x[0].numel(), _deviation(x), float(ts[-1] - ts[0])
        level = (-at.log_snr / 2).numpy()
        self._p = CubicSpline(level, ((divergences - self.dims * at.drift[:, None]) / rate[:, None]).numpy())
        self._levels = np.linspace(level[0], level[-1], 4001)
        self._times = CubicSpline(level, ts.numpy())(self._levels)
        self._whole = self._p.integrate(level[0], level[-1])

    def error(self, solver: AdamsMoulton, steps: int) -> float:
        """Of the quadrature in so many steps by the solver's clock: the largest of the pilots, in bits/dim."""
        clock = solver.clock
        assert isinstance(clock, Saturated)
        assert clock.spread is not None
        noise, square = np.exp(self._levels), clock.spread**2
        readings = np.log((noise + clock.low) / (1 + noise / clock.high)) + clock.pace / 2 * self._times
        places, weights = _quadrature(solver.order, steps)
        span = readings[-1] - readings[0]
        level = np.interp(readings[0] + places * span, readings, self._levels)
        slope = np.interp(level, self._levels, np.gradient(readings, self._levels))
        n = np.exp(level)
        values = (self._p(level) - (self.dims * n**2 / (n**2 + square))[:, None]) / slope[:, None]
        found = span * (weights @ values) + self.dims / 2 * np.log((noise[-1] ** 2 + square) / (noise[0] ** 2 + square))
        return float(np.abs(found - self._whole).max()) / (self.dims * math.log(2))

    def best(self, steps: int) -> list[AdamsMoulton]:
        """The solvers with the least such error, each of another `low`, the best first."""
        leading = dict[float, tuple[float, AdamsMoulton]]()
        for solver in self._candidates():
            assert isinstance(solver.clock, Saturated)
            error, low = self.error(solver, steps), solver.clock.low
            if low not in leading or error < leading[low][0]:
                leading[low] = error, solver
        return [solver for _, solver in sorted(leading.values(), key=lambda each: each[0])[:TRIED]]

    def _candidates(self) -> Iterator[AdamsMoulton]:
        for low, high, spread, pace, order in itertools.product(LOWS, HIGHS, SPREADS, PACES, (3, 4)):
            yield AdamsMoulton(order, Saturated(low, high, spread * self.deviation, pace / self.length))


@lru_cache(maxsize=64)
def _quadrature(order: int, steps: int) -> tuple[Array, Array]:
    """Where `AdamsMoulton` evaluates on equal steps over [0, 1], and with what weights in the end."""
    places = np.arange(steps + 1.0)
    if order > 2:
        places = np.insert(places, 1, 0.5)
    weights, known = np.zeros(len(places)), 1
    for i in range(steps):
        known += 2 if order > 2 and i == 0 else 1
        nodes = range(known - 1, max(known - 1 - order, -1), -1)
        weights[list(nodes)] += polynomial([places[j] for j in nodes], i, i + 1)
    return places / steps, weights / steps


def _deviation(x: Tensor) -> float:
    """The standard deviation of the data, about zero where the samples are few."""
    return max(float(x.double().square().mean().sqrt()), 1e-3) if x.numel() else 1.0


def _first_rows(noise: Noise, count: int) -> Noise:
    """The noise source, for the first rows of what it serves."""
    return noise.first(count) if isinstance(noise, PerSampleNoise) else noise
