"""Choose the number of steps that keeps a likelihood within a tolerance, by trials on a few samples."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Divergence, Hutchinson
from scorefield.likelihood.flow import draws_fresh, with_kept_probes
from scorefield.likelihood.flow_integral import FlowIntegral, LogProb, Solution
from scorefield.likelihood.plan import Plan, grid_of
from scorefield.likelihood.progress import ShareDone
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import AdamsMoulton, Progress, Schedule
from scorefield.solvers.solver import check_splittable
from scorefield.solvers.variables import SoftClippedLogSNR

TRIAL_SAMPLES = 6
MIN_STEPS, MAX_STEPS = 10, 448
FINEST = 4096  # steps of the samples that need most, in few dimensions
FIRST_STEPS = 12  # of the trials at 1e-2 bits/dim. The error falls with the fourth power of the steps.
# A sample's estimate is multiplied by the ratio of the trials' errors to their estimates, at least by 1 in few
# dimensions, where samples differ. In D > 64 their errors differ less, and it is at least 64 / D. Estimates of networks
# are 10 to 50 times the errors: their answer is not the score of the flow's own density.
ALIKE = 64
MARGIN = 1.2  # factor of the steps: other samples may need more than the six of the trials
SAFETY = 1.5  # factor of the mean ratio of errors to estimates, which is below the largest
RICHARDSON = 8 / 7  # factor from the change by twice the steps to the error, at third order
# Noise levels between which steps are equal in log-SNR, in units of the data's deviation: data has no detail below the
# first of `LOWS`, and networks of dequantised images have some down to the second.
LOWS, HIGH = (0.1, 0.02), 10.0


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
    batch: int = TRIAL_SAMPLES,
    progress: ShareDone = None,
) -> Plan:
    """The number of steps of `AdamsMoulton(3)` with which most samples are within a tolerance.

    Steps are equal in `SoftClippedLogSNR`, whose constants are those of the data's deviation; its lower end is one of
    two, by the estimates of `AdamsMoulton.integrate_with_error` on six samples. These are solved in n and in 2n steps,
    with the same probes: the change is the error of n steps. Its ratio to the estimates makes them errors of all
    samples. Twice as many steps follow, until the trials tell the best number. That is the one of the fewest
    evaluations: samples above the tolerance begin again with twice the steps, see `log_likelihood(plan=...)`.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x: samples; the first 6 are tried.
        tolerance: in bits/dim, of a value's error.
        cond: keywords for the denoiser. Tensors have a row for each sample of x.
        divergence: the estimator to be used.
        noise: source of the probes.
        prior_log_prob: the prior to be used; by default the path's prior.
        max_steps: the trials end here, whether the tolerance is met or not.
        batch: the most samples that are solved at once.
        progress: called with the share of the work that is done, 0 to 1. The total is an estimate.

    Raises:
        ValueError: for a tolerance that is not positive, max_steps below 1, or a denoiser whose answer for a sample
            depends on its batch.
    """
    if not tolerance > 0 or max_steps < 1:
        raise ValueError(
            f"expected a positive tolerance in bits/dim, and max_steps of 1 or more, got {tolerance} and {max_steps}"
        )
    solver = solvers_for(sde, x[:TRIAL_SAMPLES])[0]
    if len(x) == 0:
        return Plan(solver, grid_of(solver, sde, 1), tolerance, 1.0, True, 0)
    bound = BoundDenoiser(denoiser, cond, len(x))
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    check_splittable(bound, x, Schedule(sde, ends, x))
    divergence = divergence or Hutchinson()
    kept, fresh = with_kept_probes(divergence), draws_fresh(divergence, solver)
    integral = FlowIntegral(
        bound, sde, x, kept, solver, noise, prior_log_prob or sde.prior_log_prob, integrals=not fresh
    ).take(torch.arange(min(len(x), TRIAL_SAMPLES)))
    integral = replace(integral, directions=kept.directions(integral.x0, integral.noise))
    return plan_by_trials(integral, tolerance, max_steps, batch, progress)


def plan_by_trials(
    integral: FlowIntegral,
    tolerance: float,
    max_steps: int = MAX_STEPS,
    batch: int = TRIAL_SAMPLES,
    progress: ShareDone = None,
) -> Plan:
    """The plan of `choose_solver`, whose trial samples are those of the integral, with probes that stay the same."""
    sde, dims, trials = integral.sde, integral.x0[0].numel(), Trials(integral, batch, progress)
    first = first_steps(tolerance, max_steps)
    solver = min(
        solvers_for(sde, integral.x0),
        key=lambda each: float(trials(each, first).estimate.nan_to_num(math.inf).sum()),
    )
    choice = choose_steps(
        lambda steps: trials(solver, steps), tolerance * dims * math.log(2), first, max_steps, min(1.0, ALIKE / dims)
    )
    if progress is not None:
        progress(1.0)
    finest = choice.steps if not choice.met else FINEST if dims <= ALIKE else max(max_steps, choice.steps)
    return Plan(solver, grid_of(solver, sde, choice.steps), tolerance, choice.ratio, choice.met, trials.nfe, finest)


def solvers_for(sde: SDE, x: Tensor) -> list[AdamsMoulton]:
    """Solvers with two integration variables, for data x (B, *D) of the path at t_min."""
    x = x.double() if len(x) else torch.tensor([-0.5, 0.5])
    deviation, size = (max(float(each), 1e-3) for each in (x.std(), x.square().mean().sqrt()))
    return [AdamsMoulton(3, SoftClippedLogSNR(low * deviation, HIGH * size, deviation)) for low in LOWS]


def first_steps(tolerance: float, max_steps: int = MAX_STEPS) -> int:
    """The number of steps with which the trials begin."""
    steps = round(FIRST_STEPS * math.sqrt(math.sqrt(1e-2 / tolerance)))
    return max(1, min(max_steps // 2, max(MIN_STEPS, steps)))


class Solved(NamedTuple):
    """Log-densities in nats (B,), and the estimates of `AdamsMoulton.integrate_with_error` (B,)."""

    log_prob: Tensor
    estimate: Tensor


class Trials:
    """A few samples that are solved by several solvers in several numbers of steps. `nfe` counts evaluations."""

    def __init__(self, integral: FlowIntegral, batch: int, progress: ShareDone = None) -> None:
        self.parts = [integral.take(rows) for rows in torch.split(torch.arange(len(integral.x0)), batch)]
        self.progress, self.nfe, self._shown = progress, 0, 0.0
        self._known = dict[tuple[AdamsMoulton, int], Solved]()

    def __call__(self, solver: AdamsMoulton, steps: int) -> Solved:
        """The samples by this solver in so many steps."""
        if (solver, steps) not in self._known:
            solutions = [self._solve(replace(part, solver=solver), solver, steps) for part in self.parts]
            estimates = [each.estimate for each in solutions if each.estimate is not None]
            log_prob = torch.cat([each.log_prob for each in solutions])
            self._known[solver, steps] = Solved(log_prob.double().cpu(), torch.cat(estimates).double().cpu())
        return self._known[solver, steps]

    def _solve(self, part: FlowIntegral, solver: AdamsMoulton, steps: int) -> Solution:
        evaluations, before = solver.evaluations(steps) * len(part.x0), self.nfe

        def on_step(state: Progress) -> None:
            if self.progress is not None:
                now = before + evaluations * state.step / state.steps
                self._shown = max(self._shown, now / (now + 2 * len(self.parts) * evaluations))
                self.progress(self._shown)

        with torch.no_grad():
            solution = part.solve(grid_of(solver, part.sde, steps), on_step)
        self.nfe += evaluations
        return solution


class StepChoice(NamedTuple):
    """A number of steps, the ratio of errors to estimates, and whether the tolerance is met in that many steps."""

    steps: int
    ratio: float
    met: bool


def choose_steps(
    solve: Callable[[int], Solved], tolerance: float, first: int, most: int, smallest_ratio: float = 1.0
) -> StepChoice:
    """See `choose_solver`. `solve` gives the trial samples in a number of steps, and the tolerance is in nats."""
    steps = first
    while True:
        finer = min(2 * steps, most)
        coarse, fine = solve(steps), solve(finer)
        error = (RICHARDSON * (fine.log_prob - coarse.log_prob).abs()).nan_to_num(math.inf)
        measured, last = (SAFETY * float(error.sum() / each.estimate.sum()) for each in (coarse, fine))
        ratio = max(smallest_ratio, measured)
        if math.isfinite(ratio):
            power = (coarse.estimate / fine.estimate).log2().nan_to_num(4.0).clamp(1.0, 6.0)
            needed = MARGIN * steps * (ratio * coarse.estimate / tolerance) ** (1 / power)
            best = _cheapest(needed, most)
            falls = tolerance * max(1.0, best / steps) ** 2  # at second order; rough networks have none
            if best <= finer and float(needed.median()) <= finer and float(error.median()) <= falls:
                # The ratio grows with the number of steps: the error is of a lower order than the estimate.
                return StepChoice(best, max(smallest_ratio, measured * max(1.0, best / steps)), True)
            if float(needed.median()) > 4 * finer:
                finer = max(finer, most // 2)
        if steps == finer or finer == most:
            if not bool(error.isfinite().all()):
                raise ValueError(
                    f"expected finite log-densities of the trial samples, got NaN or infinity in {most} steps: look "
                    "for NaN in the weights, or for values far outside those of training"
                )
            return StepChoice(most, max(smallest_ratio, last), False)
        steps = finer


def _cheapest(needed: Tensor, most: int) -> int:
    """The first number of steps of least cost, where a sample that needs more begins again with twice the steps."""
    candidates = torch.arange(min(MIN_STEPS, most), most + 1, dtype=torch.float64)
    doublings = (needed.clamp(max=FINEST).double() / candidates[:, None]).clamp(min=1).log2().ceil()
    cost = candidates * (2 ** (doublings + 1) - 1).mean(1)
    return int(candidates[cost.argmin()])
