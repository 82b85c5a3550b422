"""The probability flow from the data to the prior with its divergence, for all samples or for some of them again."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from scorefield.likelihood.divergence import Divergence
from scorefield.likelihood.flow import FlowWithDivergence, draws_fresh
from scorefield.likelihood.plan import Plan
from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import one_each
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import AdamsMoulton, Adaptive, FlowSolver, PerSampleNoise, Schedule
from scorefield.solvers.ode.flow import State
from scorefield.solvers.solver import OnStep, check_splittable

LogProb = Callable[[Tensor], Tensor]  # (B, *D) -> (B,), nats
PATIENCE = 3  # doublings of the steps: estimates of samples between two modes may stay as large for two


@dataclass(frozen=True)
class Solution:
    """What integrating the flow gives for each sample.

    Args:
        latent: the end of the flow, (B, *D).
        prior: its log-density in nats, (B,).
        change: estimates of the integral of the divergence in nats, (B, E).
        counts: evaluations, (B,).
        estimate: see `AdamsMoulton.integrate_with_error`, (B,) in nats; None by another solver.
    """

    latent: Tensor
    prior: Tensor
    change: Tensor
    counts: Tensor
    estimate: Tensor | None

    @property
    def log_prob(self) -> Tensor:
        """In nats, (B,)."""
        return self.prior + self.change.mean(1)

    def with_rows(self, rows: Tensor, other: "Solution") -> "Solution":
        """The solution with these rows replaced. Their evaluations are added."""

        def put(mine: Tensor, theirs: Tensor) -> Tensor:
            return mine.index_copy(0, rows.to(mine.device), theirs)

        assert self.estimate is not None
        assert other.estimate is not None
        return Solution(
            put(self.latent, other.latent),
            put(self.prior, other.prior),
            put(self.change, other.change),
            put(self.counts, self.counts[rows.cpu()] + other.counts),
            put(self.estimate, other.estimate),
        )


@dataclass(frozen=True)
class FlowIntegral:
    """A flow to integrate from x0: see `log_likelihood`.

    `directions` are probes that stay the same. Without `integrals` the estimate of an error is the one that is left by
    fresh probes: see `AdamsMoulton.integrate_with_error`.
    """

    denoiser: BoundDenoiser
    sde: SDE
    x0: Tensor
    divergence: Divergence
    solver: FlowSolver
    noise: Noise
    prior_log_prob: LogProb
    differentiable: bool | Literal["adjoint"] = False
    directions: Tensor | None = None
    integrals: bool = True

    def take(self, rows: Tensor) -> "FlowIntegral":
        """The same for some samples, with their random numbers from the beginning."""
        noise = self.noise.take(rows.tolist()) if isinstance(self.noise, PerSampleNoise) else self.noise
        x0, directions = self.x0[rows.to(self.x0.device)], self.directions
        if directions is not None and not self.divergence.shared:
            directions = directions[:, rows.to(directions.device)]
        return replace(self, denoiser=self.denoiser.take(rows), x0=x0, noise=noise, directions=directions)

    def flow(self) -> FlowWithDivergence:
        """The field that is integrated."""
        fresh = draws_fresh(self.divergence, self.solver)
        return FlowWithDivergence(self.denoiser, self.divergence, fresh, self.noise, bool(self.differentiable))

    def solve(self, ts: Tensor | None, on_step: OnStep = None) -> Solution:
        """Integrate on a rising grid.

        Raises:
            ValueError: for a grid that is missing or falls.
        """
        flow, estimate = self.flow(), None
        schedule = _schedule(self.solver, self.sde, ts, self.x0)
        if self.solver.splits_batch:
            check_splittable(self.denoiser, self.x0, schedule)
        with torch.set_grad_enabled(bool(self.differentiable)):
            start = flow.begin(self.x0, self.directions)
            if self.differentiable == "adjoint":
                latent, change = _by_adjoint(self.solver, flow, start, schedule, self.denoiser)
            elif isinstance(self.solver, AdamsMoulton):
                (latent, change), estimate = self.solver.integrate_with_error(
                    flow, start, schedule, on_step, integrals=self.integrals and not flow.fresh
                )
            else:
                latent, change = self.solver.integrate(flow, start, schedule, on_step)
            prior = one_each(self.prior_log_prob(latent), len(self.x0), "the prior")
        return Solution(latent, prior, change, flow.counts, estimate)

    def solve_within(self, plan: Plan, on_step: OnStep = None) -> Solution:
        """Integrate by a plan: samples whose error is above its tolerance begin again, with twice the steps."""
        solution, steps = self.solve(plan.ts, on_step), plan.steps
        nats = plan.tolerance * math.prod(self.x0.shape[1:]) * math.log(2)
        estimates = list[Tensor]()
        while 2 * steps <= plan.finest:
            assert solution.estimate is not None
            estimates.append(solution.estimate)
            unsolved = ~(plan.ratio * solution.estimate <= nats)
            # A sample whose estimate has not fallen for so long is at the limit of its dtype.
            if len(estimates) > PATIENCE:
                unsolved &= solution.estimate < estimates[-1 - PATIENCE] / 2
            rows = unsolved.nonzero().flatten()
            if len(rows) == 0:
                break
            steps *= 2
            solution = solution.with_rows(rows, self.take(rows).solve(plan.grid(self.sde, steps)))
        return solution


def _schedule(solver: FlowSolver, sde: SDE, ts: Tensor | None, x0: Tensor) -> Schedule:
    if not isinstance(solver, FlowSolver):
        raise ValueError(
            f"expected a solver that integrates a density, got {solver}: use AdamsMoulton(), Heun() or Adaptive()"
        )
    solver.check_takes(sde)
    if ts is None:
        if solver.fixed_grid:
            raise ValueError(
                f"expected a grid for {solver}, got None: pass a rising one, ts=grids.log_snr(sde, 100).flip(0), or a "
                "tolerance instead of the solver"
            )
        ts = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    schedule = Schedule(sde, ts, x0)
    if not schedule.increasing:
        raise ValueError("expected a rising grid, from the data to the noise, got a falling one: flip it, ts.flip(0)")
    return schedule


def _by_adjoint(
    solver: FlowSolver, flow: FlowWithDivergence, start: State, schedule: Schedule, denoiser: BoundDenoiser
) -> State:
    if not isinstance(solver, Adaptive):
        raise ValueError(
            f"expected Adaptive(per_sample=False) for torchdiffeq's adjoint, got {solver}: use it, or "
            "differentiable=True"
        )
    module = denoiser.denoiser
    weights = tuple(p for p in module.parameters() if p.requires_grad) if isinstance(module, nn.Module) else ()
    return solver.by_adjoint(flow, start, schedule, weights)
