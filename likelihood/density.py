"""The exact log-density of a probability flow, by the instantaneous change of variables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from scorefield.likelihood.choose_solver import LogProb, choose_solver
from scorefield.likelihood.divergence import Divergence, Hutchinson
from scorefield.likelihood.flow import FlowWithDivergence, draws_fresh
from scorefield.likelihood.progress import ShareDone, part_of, with_steps
from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import one_each
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.sde import Noise, check_one_level, check_path
from scorefield.solvers import Adaptive, FlowSolver, Schedule
from scorefield.solvers.ode.flow import State
from scorefield.solvers.solver import OnStep, check_splittable

CHOICE_SHARE = 0.7  # of `progress`, to choose a solver; for some 60 samples it is the share of the work


@dataclass(frozen=True)
class Density:
    """The result of an estimator: the flow's log-likelihood (`log_likelihood`), or a bound (`bounds`).

    Args:
        log_prob: in nats, (B,): of a density, or of a probability for decoders of levels.
        latent: the flow's point at t_max, (B, *D); None for a bound.
        nfe: evaluations of the network for a sample, on average; for a flow each includes the divergence.
        std_error: of log_prob, from the estimator's random draws (probes, or times and noise), (B,). It is zero where
            nothing is random, and None where a single draw gives no estimate.
        parts: the terms of log_prob, each (B,) in nats.
        nfe_max: evaluations of the sample that took most, where they differ.
        solver_error: with a tolerance, the solver's estimated error of a value in bits/dim (see `choose_solver`).
        each: of a bound, what each dimension adds to log_prob in nats, (B, *D).
        errors: of a bound, |eps_hat - eps|^2 / D at each evaluation, from the data to the noise, (K, B).
    """

    log_prob: Tensor
    latent: Tensor | None
    nfe: float
    std_error: Tensor | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    nfe_max: int | None = None
    solver_error: float | None = None
    each: Tensor | None = None
    errors: Tensor | None = None

    def __repr__(self) -> str:
        log_prob = self.log_prob.detach()
        said = [f"log_prob {tuple(log_prob.shape)}, mean {float(log_prob.double().mean()):.6g} nats"]
        if self.std_error is not None:
            error = self.std_error.detach().double().square().mean().sqrt()
            said += [f"std_error {float(error):.2g} nats (rms)"]
        if self.solver_error is not None:
            in_nats = self.solver_error * math.log(2)  # of continuous data, which has no bits/dim
            said += [f"solver_error {self.solver_error:.2g} bits/dim ({in_nats:.2g} nats/dim)"]
        said += [f"nfe {self.nfe:g}"] + ([f"nfe_max {self.nfe_max}"] if self.nfe_max is not None else [])
        said += [f"latent {tuple(self.latent.shape)}"] if self.latent is not None else []
        return f"Density({', '.join([*said, f'parts {list(self.parts)}'])})"


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
    progress: ShareDone = None,
    differentiable: bool | Literal["adjoint"] = False,
) -> Density:
    """Log p(x0) = log prior(x_T) + int_{t_min}^{t_max} div v dt  along  dx/dt = v  from x0  (Song et al. 2021, Eq. 39).

    x0 is a point of the path at t_min. The density is that of the flow from the prior to t_min, without a last
    denoising.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x0: (B, *D), continuous; `dequantise` integers first.
        cond: keywords for the denoiser. Tensors have a row for each sample, (B, ...).
        divergence: `Hutchinson(...)` (the default, one probe), `HutchPlusPlus(...)` or `Exact()`.
        solver: any `FlowSolver`: `AdamsMoulton()`, `Adaptive(...)` (the default), `Heun()`, ...
        ts: a rising grid for solvers with a fixed grid. The others need only its ends, by default t_min and t_max.
        tolerance: instead of a solver and a grid, the largest error of a value in bits/dim. `choose_solver` then
            chooses both on the first 32 samples. To score a set in batches, call it once and pass its choice.
        prior_log_prob: log-density of the latents in nats, (B, *D) -> (B,); by default the path's prior.
        noise: source of the probes; `PerSampleNoise` gives each sample its stream.
        on_step: see `Solver`.
        progress: called with the share of the work that is done, 0 to 1, of choosing a solver too.
        differentiable: keep the graph, so that log_prob can be differentiated by x0 and by the denoiser's weights.
            "adjoint" uses torchdiffeq's adjoint, in constant memory, with `Adaptive(per_sample=False)`.

    Raises:
        ValueError: for x0 that is not finite, a falling grid, a missing grid, or both a solver and a tolerance.
    """
    divergence = divergence or Hutchinson()
    check_path(sde)
    check_samples(x0)
    with torch.inference_mode(False):  # the divergence needs gradients, which tensors of inference mode do not carry
        x0 = x0.clone() if x0.is_inference() else x0
        plan, bound = None, BoundDenoiser(denoiser, cond, len(x0))
        if tolerance is not None:
            if solver is not None or ts is not None:
                raise ValueError("expected a tolerance, or a solver and its grid, got both: leave one out")
            check_one_level(sde, "a tolerance", "pass solver=RK4() and a grid, ts=grids.uniform(sde, 100).flip(0)")
            plan = choose_solver(
                denoiser, sde, x0, tolerance, cond=cond, divergence=divergence, noise=noise,
                prior_log_prob=prior_log_prob, progress=part_of(progress, 0.0, CHOICE_SHARE),
            )  # fmt: skip
            solver, ts, progress = plan.solver, plan.ts, part_of(progress, CHOICE_SHARE, 1.0)
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
                latent, change = solver.integrate(flow, start, schedule, with_steps(progress, on_step))
            prior = one_each((prior_log_prob or sde.prior_log_prob)(latent), len(x0), "the prior")
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


def check_samples(x0: Tensor) -> None:
    """Raises ValueError unless x0 (B, *D) is of finite floating-point numbers; names the first bad sample."""
    if not x0.is_floating_point():
        raise ValueError(
            f"expected floating-point x0 in the model's units, got {x0.dtype}: dequantise integers for a density, or "
            "pass the centres of their cells for a probability"
        )
    if x0.ndim < 2:
        raise ValueError(f"expected x0 (B, *D), got {tuple(x0.shape)}: add the dimension that is missing")
    bad = (~x0.detach().isfinite()).flatten(1).any(1).nonzero().flatten().tolist() if len(x0) else []
    if bad:
        raise ValueError(
            f"expected finite x0, got NaN or infinity in {len(bad)} of {len(x0)} samples, the first at index {bad[0]}: "
            "correct or remove them"
        )


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
    solver: FlowSolver, flow: FlowWithDivergence, start: State, schedule: Schedule, denoiser: DenoiserLike
) -> State:
    if not isinstance(solver, Adaptive):
        raise ValueError(
            f"expected Adaptive(per_sample=False) for torchdiffeq's adjoint, got {solver}: use it, or "
            "differentiable=True"
        )
    weights = tuple(p for p in denoiser.parameters() if p.requires_grad) if isinstance(denoiser, nn.Module) else ()
    return solver.by_adjoint(flow, start, schedule, weights)
