"""A solver and a grid for a tolerance, chosen on a few pilot samples of the model at hand."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Divergence, Hutchinson
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, take_rows
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import AdamsMoulton, PerSampleNoise, Schedule, grids
from scorefield.solvers.ode.flow import Field, State
from scorefield.solvers.solver import check_splittable
from scorefield.solvers.variables import SoftClippedLogSNR

LogProb = Callable[[Tensor], Tensor]  # (B, *D) -> (B,), nats

PILOTS = 32
SCREENED = 8  # of them, on which clocks are told apart
FINE = 160  # steps of what clocks are judged by
SLACK = 4 / 3  # of a difference from twice the steps, which may have a quarter of the error themselves
LEAST, MOST = 8, 512  # steps
ORDERS, LOWS, HIGHS, PACES = (3, 4), (0.0005, 0.002, 0.01, 0.05), (5.0, 30.0), (0.0, 2.0)
KEPT = 4  # clocks that are told apart again when there are more steps


@dataclass(frozen=True)
class Plan:
    """How to score a data set.

    Args:
        solver: with the clock that was chosen.
        ts: its rising grid.
        tolerance: that was asked for, in bits/dim.
        error: that the solver is estimated to leave in a value, in bits/dim: the largest difference from twice as many
            steps among the pilots, and a third more for what is wrong with those.
        bias: the mean of that difference, signed: what it leaves in the mean of a set.
        nfe: evaluations of a sample under this plan.
        spent: evaluations that the choice took, of all pilots together.
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


def choose_solver(
    denoiser: DenoiserLike,
    sde: SDE,
    x: Tensor,
    tolerance: float,
    *,
    cond: Cond | None = None,
    divergence: Divergence | None = None,
    noise: Noise = torch.randn_like,
    prior_log_prob: LogProb | None = None,
    most: int = MOST,
) -> Plan:
    """The fewest steps of `AdamsMoulton`, and the clock for them, that keep a value's error below the tolerance.

    Clocks (and orders) are told apart by a few of the pilots, against a fine solution; the best one is tried out on all
    of them, at so many steps and at twice as many, until the difference is below the tolerance. Pilots keep their
    probes, so that their differences are the solver's. What is said is said of the pilots: where a few samples in a
    hundred are much harder, as on the ridges between narrow modes, theirs can be a hundred times larger.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x: samples to try on; the first 32 serve.
        tolerance: in bits/dim, of a value's error.
        cond: keywords for the denoiser. Tensors have a row for each sample of x.
        divergence: as it will be used.
        noise: source of the probes.
        prior_log_prob: as it will be used; by default the path's prior.
        most: steps to end with, met or not.

    Raises:
        ValueError: for a tolerance that is not positive, or no steps at all.
    """
    if not tolerance > 0 or most < 1:
        raise ValueError(f"expected a positive tolerance in bits/dim, and 1 step or more, got {tolerance} and {most}")
    if len(x) == 0:
        return Plan(AdamsMoulton(), grids.saturated(sde, 1).flip(0), tolerance, 0.0, 0.0, 4, 0)
    few = take_rows(cond or {}, slice(0, PILOTS), len(x))
    pilots = Pilots(
        denoiser, sde, x[:PILOTS], cond=few, divergence=divergence, noise=noise, prior_log_prob=prior_log_prob
    )
    steps = min(most, max(LEAST, round(20 * (1e-3 / tolerance) ** 0.25)))
    tried: dict[int, tuple[AdamsMoulton, float, float]] = {}
    while True:
        solver, error = pilots.best(steps)
        known = error > tolerance and steps < most  # by the few: the others need not be asked
        tried[steps] = (solver, error, math.nan) if known else (solver, *pilots.error(solver, steps))
        following = _next({n: error for n, (_, error, _) in tried.items()}, tolerance, most)
        if following is None:
            break
        steps = following
    good = [n for n, (_, error, _) in tried.items() if error <= tolerance]
    steps = min(good) if good else max(tried)
    solver, error, bias = tried[steps]
    return Plan(solver, pilots.grid(solver, steps), tolerance, error, bias, solver.evaluations(steps), pilots.spent)


def _next(errors: dict[int, float], tolerance: float, most: int) -> int | None:
    """More steps where the error is too large, fewer where it is far too small; None when there is nothing to try."""
    good, bad = ([n for n, error in errors.items() if (error <= tolerance) == fits] for fits in (True, False))
    if not good:
        steps = max(bad)
        ratio = errors[steps] / tolerance
        factor = min(2.0, max(1.15, ratio ** (1 / 3))) if math.isfinite(ratio) else 2.0
        return None if steps >= most else min(most, math.ceil(steps * factor))
    least = min(good)
    fewer = max(LEAST, math.ceil(least * max(0.6, (max(errors[least], 1e-12) / tolerance) ** (1 / 3))))
    between = fewer > max((n for n in bad if n < least), default=0)
    return fewer if between and fewer < 0.9 * least and len(errors) < 5 else None


class Pilots:
    """A few samples with probes of their own, that solvers are tried out on.

    Arguments are those of `plan_for`.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        sde: SDE,
        x: Tensor,
        *,
        cond: Cond | None = None,
        divergence: Divergence | None = None,
        noise: Noise = torch.randn_like,
        prior_log_prob: LogProb | None = None,
    ) -> None:
        self.prior_log_prob = prior_log_prob or sde.prior_log_prob
        self.denoiser, self.sde, self.x, self.spent = BoundDenoiser(denoiser, cond, len(x)), sde, x, 0
        check_splittable(self.denoiser, x, Schedule(sde, torch.tensor([sde.t_min, sde.t_max]), x))
        divergence = divergence or Hutchinson()
        self.divergence = replace(divergence, fresh=False) if isinstance(divergence, Hutchinson) else divergence
        self.directions = self.divergence.directions(
            x, noise.first(len(x)) if isinstance(noise, PerSampleNoise) else noise
        )
        self.spread = max(float(x.double().square().mean().sqrt()), 1e-3)
        self._values: dict[tuple[AdamsMoulton, int, int], Tensor] = {}
        self._ranked = list[AdamsMoulton]()

    def grid(self, solver: AdamsMoulton, steps: int) -> Tensor:
        """Rising, by the solver's own clock."""
        assert isinstance(solver.clock, SoftClippedLogSNR)
        return grids.uniform_in(self.sde, steps, solver.clock).flip(0)

    def candidates(self) -> list[AdamsMoulton]:
        """Orders and clocks, whose spread is the data's."""
        length = self.sde.t_max - self.sde.t_min
        return [
            AdamsMoulton(order, SoftClippedLogSNR(low, high, self.spread, pace / length))
            for order, low, high, pace in itertools.product(ORDERS, LOWS, HIGHS, PACES)
        ]

    def best(self, steps: int) -> tuple[AdamsMoulton, float]:
        """The solver with the least error of so many steps, in the worst of the few, against a fine solution."""
        count = min(SCREENED, len(self.x))
        fine = AdamsMoulton(4, SoftClippedLogSNR(0.002, 30.0, self.spread))
        reference = self.values(fine, max(FINE, 3 * steps), count)

        def worst(solver: AdamsMoulton) -> float:
            error = float((self.values(solver, steps, count) - reference).abs().max())
            return error if math.isfinite(error) else math.inf

        self._ranked = sorted(self._ranked[:KEPT] or self.candidates(), key=worst)
        return self._ranked[0], worst(self._ranked[0])

    def error(self, solver: AdamsMoulton, steps: int) -> tuple[float, float]:
        """The largest, with `SLACK`, and the mean of what twice the steps change, in bits/dim."""
        change = self.values(solver, steps) - self.values(solver, 2 * steps)
        return SLACK * float(change.abs().max()), float(change.mean())

    def values(self, solver: AdamsMoulton, steps: int, count: int | None = None) -> Tensor:
        """Bits/dim of the first `count` pilots, or all; the prior's part belongs to it, as x has errors too."""
        count = len(self.x) if count is None else count
        if (solver, steps, count) not in self._values:
            flow, start = self.flow(count)
            with torch.no_grad():
                latent, change = solver.integrate(flow, start, Schedule(self.sde, self.grid(solver, steps), start[0]))
            self.spent += solver.evaluations(steps) * count
            nats = (self.prior_log_prob(latent) + change.mean(1)).double().cpu()
            self._values[solver, steps, count] = -nats / (latent[0].numel() * math.log(2))
        return self._values[solver, steps, count]

    def flow(self, count: int) -> tuple[Field, State]:
        """The flow of the first `count`, with their probes, and where it starts."""
        flow = FlowWithDivergence(self.denoiser.take(slice(0, count)), self.divergence, False, torch.randn_like)
        directions = self.directions if self.divergence.shared else self.directions[:, :count]
        return flow, flow.begin(self.x[:count], directions)
