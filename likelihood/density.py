"""The exact log-density of a probability flow, by the instantaneous change of variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from scorefield.likelihood.choose_solver import LogProb, choose_solver
from scorefield.likelihood.divergence import Divergence, Hutchinson
from scorefield.likelihood.flow import FlowWithDivergence, check_finite, draws_fresh
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import Adaptive, FlowSolver, Schedule
from scorefield.solvers.ode.flow import State
from scorefield.solvers.solver import OnStep, check_splittable


@dataclass(frozen=True)
class Density:
    """What an estimator of log-likelihood found: the flow's own value (`log_likelihood`), or a bound (`bounds`).

    Args:
        log_prob: in nats, (B,); what it is the logarithm of, the estimator says.
        latent: where the flow took x at t_max, (B, *D); None of a bound.
        nfe: evaluations of the network (with its divergence, for a flow), a sample's mean.
        std_error: of log_prob from the estimator's own draws, probes or times and noise, (B,); zero when there is
            nothing random in it, None when one draw does not tell.
        parts: what log_prob is the sum of, each (B,) in nats.
        nfe_max: evaluations of the sample that took most, where they differ.
        solver_error: what the solver is estimated to leave in a value, in bits/dim, by the pilots; with a tolerance.
    """

    log_prob: Tensor
    latent: Tensor | None
    nfe: float
    std_error: Tensor | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    nfe_max: int | None = None
    solver_error: float | None = None


def log_likelihood(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    *,
    cond: Cond | None = None,
    divergence: Divergence | None = None,
    solver: FlowSolver | None = None,
    ts: Tensor | None = None,
    tolerance: float | None = None,
    prior_log_prob: LogProb | None = None,
    noise: Noise = torch.randn_like,
    on_step: OnStep = None,
    differentiable: bool | Literal["adjoint"] = False,
) -> Density:
    """Log p(x0) = log prior(x_T) + int_{t_min}^{t_max} div v dt  along  dx/dt = v  from x0  (Song et al. 2021, Eq. 39).

    x0 is taken as a point of the path at t_min: the density is that of the flow started from the prior and
    stopped there, with no last denoising.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x0: (B, *D), continuous: see `dequantise`.
        cond: keywords for the denoiser. Tensors have a row for each sample, (B, ...).
        divergence: `Hutchinson(...)` (the default, one probe), `HutchPlusPlus(...)` or `Exact()`.
        solver: any that integrates a flow: `AdamsMoulton()`, `Adaptive(...)` (the default), `Heun()`, ...
        ts: the grid for solvers that keep one, rising; the others need only its ends, t_min and t_max.
        tolerance: in place of a solver and a grid, the error in bits/dim that the solver may leave in a value. They are
            chosen on the first 32 samples, `plan_for`; to score a set in batches choose them once and pass them on.
        prior_log_prob: log-density of the latents in nats, (B, *D) -> (B,); by default the path's prior.
        noise: source of the probes; `PerSampleNoise` gives each sample its own.
        on_step: see `Solver`.
        differentiable: keep the graph, so that log_prob can be differentiated by x0 and by the denoiser's weights;
            "adjoint" does so in constant memory by torchdiffeq's adjoint, with `Adaptive(per_sample=False)`.

    Raises:
        ValueError: for x0 that is not finite, a falling grid, a solver that needs a grid and got none, or a solver
            beside a tolerance.
    """
    divergence = divergence or Hutchinson()
    check_finite(x0)
    with torch.inference_mode(False):  # whose tensors carry no gradient, and a divergence is one
        x0 = x0.clone() if x0.is_inference() else x0
        plan, bound = None, BoundDenoiser(denoiser, cond, len(x0))
        if tolerance is not None:
            if solver is not None or ts is not None:
                raise ValueError("expected a tolerance, or a solver and its grid, got both: leave one out")
            check_splittable(bound, x0, _schedule(Adaptive(), sde, None, x0))
            plan = choose_solver(
                denoiser,
                sde,
                x0,
                tolerance,
                cond=cond,
                divergence=divergence,
                noise=noise,
                prior_log_prob=prior_log_prob,
            )
            solver, ts = plan.solver, plan.ts
        solver = solver or Adaptive()
        fresh = draws_fresh(divergence, solver)
        flow = FlowWithDivergence(bound, divergence, fresh, noise, bool(differentiable))
        schedule = _schedule(solver, sde, ts, x0)
        if solver.splits_batch:
            check_splittable(bound, x0, schedule)
        with torch.set_grad_enabled(bool(differentiable)):
            start = flow.begin(x0)
            if differentiable == "adjoint":
                latent, change = _by_adjoint(solver, flow, start, schedule, denoiser)
            else:
                latent, change = solver.integrate(flow, start, schedule, on_step)
            prior = (prior_log_prob or sde.prior_log_prob)(latent)
            log_prob = prior + change.mean(1)
    error = None
    if divergence.shared:
        error = torch.zeros_like(log_prob).detach()
    elif divergence.count > 1:
        error = change.detach().std(1) / divergence.count**0.5
    parts = {"prior": prior.detach(), "change": change.detach().mean(1)}
    counts = flow.counts.double()
    return Density(
        log_prob,
        latent,
        nfe=float(counts.mean()) if len(x0) else 0.0,
        nfe_max=int(counts.max()) if len(x0) else 0,
        std_error=error,
        solver_error=None if plan is None else plan.error,
        parts=parts,
    )


def _schedule(solver: FlowSolver, sde: SDE, ts: Tensor | None, x0: Tensor) -> Schedule:
    if not isinstance(solver, FlowSolver):
        raise ValueError(f"{solver} cannot integrate a density: use AdamsMoulton(), Heun() or Adaptive()")
    if ts is None:
        if not isinstance(solver, Adaptive):
            raise ValueError(
                f"{solver} keeps to a grid: pass a rising one, ts=grids.log_snr(sde, 100).flip(0), or a tolerance alone"
            )
        ts = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    schedule = Schedule(sde, ts, x0)
    if not schedule.increasing:
        raise ValueError("expected a rising grid, from the data's end to the noise's: flip it, ts.flip(0)")
    return schedule


def _by_adjoint(
    solver: FlowSolver, flow: FlowWithDivergence, start: State, schedule: Schedule, denoiser: DenoiserLike
) -> State:
    if not isinstance(solver, Adaptive):
        raise ValueError(f"the adjoint is torchdiffeq's: use Adaptive(per_sample=False), got {solver}")
    weights = tuple(p for p in denoiser.parameters() if p.requires_grad) if isinstance(denoiser, nn.Module) else ()
    return solver.by_adjoint(flow, start, schedule, weights)
