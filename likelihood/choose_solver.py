"""Choose the solver and the grid that keep a likelihood within a tolerance, by trials on a few samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Divergence, Hutchinson
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.likelihood.progress import ShareDone
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, take_rows
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import AdamsMoulton, PerSampleNoise, Progress, Schedule, grids
from scorefield.solvers.ode.flow import Field, State
from scorefield.solvers.solver import check_splittable
from scorefield.solvers.variables import SoftClippedLogSNR

LogProb = Callable[[Tensor], Tensor]  # (B, *D) -> (B,), nats

TRIAL_SAMPLES = 32
LARGE_TRIAL_SAMPLES = 8  # of more than 1,024 dimensions, over which a value's error in bits/dim is a mean
RANKING_SAMPLES = 8  # the first trial samples, which rank the candidates.
FINER = 4  # steps of the fine solution in the ranking, over those of the candidates.
RICHARDSON_ORDER = 2
MIN_STEPS, MAX_STEPS = 8, 512
# Order, low, high, time weight: the first is good on most problems, each next one where those before it are not.
CANDIDATES = (
    (3, 0.05, 5.0, 0.0), (3, 0.05, 5.0, 2.0), (3, 0.05, 30.0, 2.0), (3, 0.05, 30.0, 0.0),
    (3, 0.01, 5.0, 0.0), (4, 0.05, 5.0, 2.0), (3, 0.0005, 30.0, 2.0), (4, 0.01, 5.0, 0.0),
)  # fmt: skip
CANDIDATES_KEPT = 2  # best solvers of one ranking, the candidates of the next
GOOD = 0.5  # of the tolerance: a ranking ends at the first candidate whose error is below


@dataclass(frozen=True)
class Plan:
    """How to score a data set.

    Args:
        solver: the chosen one, with its integration variable.
        ts: its rising grid.
        tolerance: the requested one, in bits/dim.
        error: the solver's estimated error of a value, in bits/dim: the largest difference from twice the steps or
            more, over the trial samples, times `richardson`.
        bias: the mean of that difference, signed: the estimated error of a set's mean.
        nfe: evaluations of a sample under this plan.
        trial_nfe: evaluations that the choice took, over all trial samples.
    """

    solver: AdamsMoulton
    ts: Tensor
    tolerance: float
    error: float
    bias: float
    nfe: int
    trial_nfe: int

    @property
    def met(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    def __repr__(self) -> str:
        return (
            f"Plan({self.solver}, {len(self.ts) - 1} steps, {self.nfe} evaluations, error {self.error:.2g} of "
            f"tolerance {self.tolerance:g} bits/dim, {self.trial_nfe} evaluations to choose)"
        )


def trial_samples(x: Tensor) -> int:
    """The number of samples of x (B, *D) that are tried: 32, or 8 of more than 1,024 dimensions, or all of fewer."""
    return min(len(x), TRIAL_SAMPLES if math.prod(x.shape[1:]) <= 1024 else LARGE_TRIAL_SAMPLES)


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
    max_steps: int = MAX_STEPS,
    progress: ShareDone = None,
) -> Plan:
    """The fewest steps of `AdamsMoulton`, and the variable for them, that keep a value's error below the tolerance.

    Orders and integration variables are ranked on the first 8 samples, against a solution of four times the steps. The
    first whose error is below half the tolerance ends the ranking. The best one is compared with itself at twice the
    steps, on all trial samples, until the difference is below the tolerance. Each sample keeps its probes, so the
    differences are the solver's.

    The estimate covers the trial samples only. Where a few samples in a hundred are much harder, as on the ridges
    between narrow modes, their error can be a hundred times larger.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x: samples to try; the first 32 are used, or 8 of more than 1,024 dimensions.
        tolerance: in bits/dim, of a value's error.
        cond: keywords for the denoiser. Tensors have a row for each sample of x.
        divergence: the estimator to be used.
        noise: source of the probes.
        prior_log_prob: the prior to be used; by default the path's prior.
        max_steps: the search ends here, whether the tolerance is met or not.
        progress: called with the share of the work that is done, 0 to 1. The total is an estimate.

    Raises:
        ValueError: for a tolerance that is not positive, max_steps below 1, or a denoiser whose answer for a sample
            depends on its batch.
    """
    if not tolerance > 0 or max_steps < 1:
        raise ValueError(
            f"expected a positive tolerance in bits/dim, and max_steps of 1 or more, got {tolerance} and {max_steps}"
        )
    if len(x) == 0:
        return Plan(AdamsMoulton(), grids.soft_clipped(sde, 1).flip(0), tolerance, 0.0, 0.0, 4, 0)
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    check_splittable(BoundDenoiser(denoiser, cond, len(x)), x, Schedule(sde, ends, x))
    count = trial_samples(x)
    first = take_rows(cond or {}, slice(0, count), len(x))
    trials = Trials(
        denoiser, sde, x[:count], cond=first, divergence=divergence, noise=noise, prior_log_prob=prior_log_prob,
        progress=progress,
    )  # fmt: skip
    steps = min(max_steps, max(MIN_STEPS, round(20 * (1e-3 / tolerance) ** 0.25)))
    trials.expect(steps)
    tried: dict[int, tuple[AdamsMoulton, float, float]] = {}
    while True:
        solver, error = trials.best(steps, GOOD * tolerance)
        too_large = error > tolerance and steps < max_steps  # on the first 8: no need to evaluate the others
        tried[steps] = (solver, error, math.nan) if too_large else (solver, *trials.error(solver, steps))
        following = _next({n: error for n, (_, error, _) in tried.items()}, tolerance, max_steps)
        if following is None:
            break
        steps = following
    good = [n for n, (_, error, _) in tried.items() if error <= tolerance]
    steps = min(good) if good else max(tried)
    solver, error, bias = tried[steps]
    if progress is not None:
        progress(1.0)
    return Plan(solver, trials.grid(solver, steps), tolerance, error, bias, solver.evaluations(steps), trials.nfe)


def richardson(steps: int, finer: int) -> float:
    """From the difference between two solutions to the error of the coarser one, at second order."""
    return 1 / (1 - (steps / finer) ** RICHARDSON_ORDER)


def _next(errors: dict[int, float], tolerance: float, max_steps: int) -> int | None:
    """More steps where the error is too large, fewer where it is far too small, None at the end of the search."""
    good, bad = ([n for n, error in errors.items() if (error <= tolerance) == fits] for fits in (True, False))
    if not good:
        steps = max(bad)
        ratio = errors[steps] / tolerance
        factor = min(2.0, max(1.15, ratio ** (1 / 3))) if math.isfinite(ratio) else 2.0
        return None if steps >= max_steps else min(max_steps, math.ceil(steps * factor))
    fewest = min(good)
    fewer = max(MIN_STEPS, math.ceil(fewest * max(0.6, (max(errors[fewest], 1e-12) / tolerance) ** (1 / 3))))
    between = fewer > max((n for n in bad if n < fewest), default=0)
    return fewer if between and fewer < 0.9 * fewest and len(errors) < 5 else None


class Trials:
    """A few samples with fixed probes, on which solvers are compared.

    Arguments are those of `choose_solver`. `nfe` counts the evaluations, over all samples.
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
        progress: ShareDone = None,
    ) -> None:
        self.prior_log_prob = prior_log_prob or sde.prior_log_prob
        self.denoiser, self.sde, self.x, self.nfe = BoundDenoiser(denoiser, cond, len(x)), sde, x, 0
        divergence = divergence or Hutchinson()
        self.divergence = replace(divergence, fresh=False) if isinstance(divergence, Hutchinson) else divergence
        self.directions = self.divergence.directions(
            x, noise.first(len(x)) if isinstance(noise, PerSampleNoise) else noise
        )
        self.spread = max(float(x.double().square().mean().sqrt()), 1e-3)
        self.progress, self.expected = progress, 1
        self._values: dict[tuple[AdamsMoulton, int], Tensor] = {}  # of the first samples, or of all
        self._ranked = list[AdamsMoulton]()

    def expect(self, steps: int) -> None:
        """Estimate the evaluations of a choice that begins with so many steps, for `progress`."""
        ranking = min(RANKING_SAMPLES, len(self.x)) * (len(CANDIDATES) + FINER) * steps
        self.expected = ranking + 4 * len(self.x) * steps

    def grid(self, solver: AdamsMoulton, steps: int) -> Tensor:
        """A rising grid of equal steps in the solver's integration variable."""
        assert isinstance(solver.variable, SoftClippedLogSNR)
        return grids.uniform_in(self.sde, steps, solver.variable).flip(0)

    def candidates(self) -> list[AdamsMoulton]:
        """Orders and integration variables, with the spread of the data."""
        length = self.sde.t_max - self.sde.t_min
        return [
            AdamsMoulton(order, SoftClippedLogSNR(low, high, self.spread, weight / length))
            for order, low, high, weight in CANDIDATES
        ]

    def best(self, steps: int, good: float = 0.0) -> tuple[AdamsMoulton, float]:
        """The solver with the smallest error at this number of steps, and that error.

        It is the largest error over the first 8 samples, in bits/dim, against a fine solution. The first solver whose
        error is at most `good` is taken, and the others are not tried.
        """
        count = min(RANKING_SAMPLES, len(self.x))
        fine = AdamsMoulton(4, SoftClippedLogSNR(0.002, 30.0, self.spread))
        finer = min((n for solver, n in self._values if solver == fine and n >= FINER * steps), default=FINER * steps)
        reference, errors = self.values(fine, finer, count), dict[AdamsMoulton, float]()
        candidates = self._ranked[:CANDIDATES_KEPT] or self.candidates()
        for solver in candidates:
            error = float((self.values(solver, steps, count) - reference).abs().max())
            errors[solver] = error if math.isfinite(error) else math.inf
            if error <= good:
                break
        found = sorted(errors, key=lambda solver: errors[solver])
        self._ranked = [*found, *(solver for solver in candidates if solver not in errors)]
        return found[0], errors[found[0]]

    def error(self, solver: AdamsMoulton, steps: int) -> tuple[float, float]:
        """The largest difference from a finer solution, times `richardson`, and the mean difference, in bits/dim.

        It has twice the steps, or more where such a solution is known.
        """
        known = (n for (each, n), values in self._values.items() if each == solver and len(values) == len(self.x))
        finer = min((n for n in known if n >= 2 * steps), default=2 * steps)
        change = self.values(solver, steps) - self.values(solver, finer)
        return richardson(steps, finer) * float(change.abs().max()), float(change.mean())

    def values(self, solver: AdamsMoulton, steps: int, count: int | None = None) -> Tensor:
        """Bits/dim of the first `count` samples, or all. The prior is included, because x has errors too."""
        count = len(self.x) if count is None else count
        known = self._values.get((solver, steps), torch.zeros(0, dtype=torch.float64))
        if len(known) < count:
            rows = slice(len(known), count)
            known = torch.cat([known, self._solve(solver, steps, rows)])
            self._values[solver, steps] = known
        return known[:count]

    def flow(self, rows: slice) -> tuple[Field, State]:
        """The flow of some samples, with their probes, and its initial state."""
        flow = FlowWithDivergence(self.denoiser.take(rows), self.divergence, False, torch.randn_like)
        directions = self.directions if self.divergence.shared else self.directions[:, rows]
        return flow, flow.begin(self.x[rows], directions)

    def _solve(self, solver: AdamsMoulton, steps: int, rows: slice) -> Tensor:
        (flow, start), before = self.flow(rows), self.nfe
        evaluations = solver.evaluations(steps) * len(start[0])

        def on_step(state: Progress) -> None:
            if self.progress is not None:
                done = before + evaluations * state.step / state.steps
                self.progress(done / max(self.expected, 1.1 * done))

        with torch.no_grad():
            schedule = Schedule(self.sde, self.grid(solver, steps), start[0])
            latent, change = solver.integrate(flow, start, schedule, on_step)
        self.nfe += evaluations
        nats = (self.prior_log_prob(latent) + change.mean(1)).double().cpu()
        return -nats / (latent[0].numel() * math.log(2))
