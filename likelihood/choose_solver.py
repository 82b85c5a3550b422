"""Choose the number of steps that keeps a likelihood within a tolerance, by trials on a few samples."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Divergence, Hutchinson, HutchPlusPlus
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
MIN_STEPS, MAX_STEPS = 10, 512
FIRST_STEPS = 12  # of the trials at 1e-2 bits/dim. The error falls with the fourth power of the steps.
SMALLEST_RATIO = 1.0  # of errors to their estimates
MARGIN = 1.2  # of steps: some of the other samples need more than six tell
RICHARDSON = 8 / 7  # from the change by twice the steps to the error, at third order
# In units of the data's deviation: noise levels between which steps are equal in log-SNR. Data has no detail below.
LOW, HIGH, TIME_WEIGHT = 0.1, 10.0, 0.5


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

    Steps are equal in `SoftClippedLogSNR`, whose constants are those of the data's deviation. Six samples are solved in
    n and in 2n steps, with the same probes: the change is the error of n steps. The ratio of its sum to that of
    `AdamsMoulton.integrate_with_error` makes the latter an estimate for every sample. Twice as many steps follow, until
    the trials tell how many are best: those of the fewest evaluations, where samples above the tolerance begin again
    with twice the steps. `log_likelihood(plan=...)` does that.

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
    solver = solver_for(sde, x[:TRIAL_SAMPLES])
    if len(x) == 0:
        return Plan(solver, grid_of(solver, sde, 1), tolerance, SMALLEST_RATIO, True, 0)
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    check_splittable(BoundDenoiser(denoiser, cond, len(x)), x, Schedule(sde, ends, x))
    divergence = divergence or Hutchinson()
    if isinstance(divergence, Hutchinson | HutchPlusPlus):
        divergence = replace(divergence, fresh=False)
    integral = FlowIntegral(
        BoundDenoiser(denoiser, cond, len(x)), sde, x, divergence, solver, noise, prior_log_prob or sde.prior_log_prob
    ).take(torch.arange(min(len(x), TRIAL_SAMPLES)))
    integral = replace(integral, directions=divergence.directions(integral.x0, integral.noise))
    parts = [integral.take(rows) for rows in torch.split(torch.arange(len(integral.x0)), batch)]
    spent, shown = 0, 0.0

    def solve(steps: int) -> Solved:
        nonlocal spent
        solutions, planned = list[Solution](), spent + 2 * solver.evaluations(steps) * len(integral.x0)
        for part in parts:
            evaluations = solver.evaluations(steps) * len(part.x0)

            def on_step(state: Progress, before: int = spent, evaluations: int = evaluations) -> None:
                nonlocal shown
                if progress is not None:
                    now = before + evaluations * state.step / state.steps
                    shown = max(shown, now / (now + planned))
                    progress(shown)

            with torch.no_grad():
                solutions.append(part.solve(grid_of(solver, sde, steps), on_step))
            spent += evaluations
        estimates = [each.estimate for each in solutions if each.estimate is not None]
        log_prob = torch.cat([each.log_prob for each in solutions])
        return Solved(log_prob.double().cpu(), torch.cat(estimates).double().cpu())

    nats = tolerance * x[0].numel() * math.log(2)
    choice = choose_steps(solve, nats, first_steps(tolerance, max_steps), max_steps)
    if progress is not None:
        progress(1.0)
    return Plan(solver, grid_of(solver, sde, choice.steps), tolerance, choice.ratio, choice.met, spent)


def solver_for(sde: SDE, x: Tensor) -> AdamsMoulton:
    """The solver and the integration variable for data x (B, *D) of the path at t_min."""
    spread = max(float(x.double().square().mean().sqrt()), 1e-3) if len(x) else 0.5
    weight = TIME_WEIGHT / (sde.t_max - sde.t_min)
    return AdamsMoulton(3, SoftClippedLogSNR(LOW * spread, HIGH * spread, spread, weight))


def first_steps(tolerance: float, max_steps: int = MAX_STEPS) -> int:
    """The number of steps with which the trials begin."""
    steps = round(FIRST_STEPS * math.sqrt(math.sqrt(1e-2 / tolerance)))
    return max(1, min(max_steps // 2, max(MIN_STEPS, steps)))


class Solved(NamedTuple):
    """Log-densities in nats (B,), and the estimates of `AdamsMoulton.integrate_with_error` (B,)."""

    log_prob: Tensor
    estimate: Tensor


class StepChoice(NamedTuple):
    """A number of steps, the ratio of errors to estimates, and whether the tolerance is met in that many steps."""

    steps: int
    ratio: float
    met: bool


def choose_steps(solve: Callable[[int], Solved], tolerance: float, first: int, most: int) -> StepChoice:
    """See `choose_solver`. `solve` gives the trial samples in a number of steps, and the tolerance is in nats."""
    steps, coarse = first, solve(first)
    while True:
        finer = min(2 * steps, most)
        fine = solve(finer) if finer > steps else coarse
        error = (RICHARDSON * (fine.log_prob - coarse.log_prob).abs()).nan_to_num(math.inf)
        ratio = max(SMALLEST_RATIO, float(error.sum() / coarse.estimate.sum().clamp(min=tolerance)))
        if math.isfinite(ratio):
            needed = _steps_needed(steps, coarse.estimate, fine.estimate, ratio, tolerance)
            best = _cheapest(needed, most)
            if best <= finer and float(needed.median()) <= finer:
                growth = max(1.0, best / steps) if ratio > SMALLEST_RATIO else 1.0
                return StepChoice(best, ratio * growth, True)
        if finer == most:
            last = float(error.sum() / fine.estimate.sum().clamp(min=tolerance))
            return StepChoice(most, max(SMALLEST_RATIO, last), False)
        steps, coarse = finer, fine


def _steps_needed(steps: int, coarse: Tensor, fine: Tensor, ratio: float, tolerance: float) -> Tensor:
    """For each trial sample the steps at which ratio times estimate is the tolerance, by a power of the steps."""
    power = (coarse / fine).log2().nan_to_num(4.0).clamp(1.0, 6.0)
    excess = (ratio * coarse / tolerance).nan_to_num(math.inf)
    # The ratio itself grows with the number of steps: the error is of a lower order than the estimate.
    power = torch.where((excess > 1) & torch.tensor(ratio > SMALLEST_RATIO), (power - 1).clamp(min=1.0), power)
    return MARGIN * steps * excess ** (1 / power)


def _cheapest(needed: Tensor, most: int) -> int:
    """The first number of steps of least cost, where a sample that needs more begins again with twice the steps."""
    candidates = torch.arange(min(MIN_STEPS, most), most + 1, dtype=torch.float64)
    again = (needed.double() / candidates[:, None]).clamp(1, 2**10).log2().ceil()
    cost = candidates * (2 ** (again + 1) - 1).mean(1)
    return int(candidates[cost.argmin()])
