"""The exact log-density of a probability flow, by the instantaneous change of variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from scorefield.likelihood.choose_solver import choose_solver
from scorefield.likelihood.divergence import Divergence, Hutchinson
from scorefield.likelihood.flow_integral import FlowIntegral, LogProb, Solution
from scorefield.likelihood.plan import Plan
from scorefield.likelihood.progress import ShareDone, part_of, with_steps
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.sde import Noise, check_one_level, check_path
from scorefield.solvers import Adaptive, FlowSolver
from scorefield.solvers.solver import OnStep

CHOICE_SHARE = 0.3  # of `progress`, to choose a solver; for some 40 samples it is the share of the work


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
        solver_error: with a tolerance or a plan, the solver's estimated error of log_prob, (B,) in nats.
        each: of a bound, what each dimension adds to log_prob in nats, (B, *D).
        errors: of a bound, |eps_hat - eps|^2 / D at each evaluation, from the data to the noise, (K, B).
    """

    log_prob: Tensor
    latent: Tensor | None
    nfe: float
    std_error: Tensor | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    nfe_max: int | None = None
    solver_error: Tensor | None = None
    each: Tensor | None = None
    errors: Tensor | None = None

    def __repr__(self) -> str:
        log_prob = self.log_prob.detach()
        said = [f"log_prob {tuple(log_prob.shape)}, mean {float(log_prob.double().mean()):.6g} nats"]
        if self.std_error is not None:
            error = self.std_error.detach().double().square().mean().sqrt()
            said += [f"std_error {float(error):.2g} nats (rms)"]
        if self.solver_error is not None and len(log_prob):
            said += [f"solver_error {float(self.solver_error.max()):.2g} nats (largest)"]
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
    plan: Plan | None = None,
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
            chooses the steps on the first samples, and samples whose error is larger begin again with twice the steps.
            `solver_error` has the errors that are left.
        plan: a choice of `choose_solver`, in place of a tolerance: call it once to score a set in batches.
        prior_log_prob: log-density of the latents in nats, (B, *D) -> (B,); by default the path's prior.
        noise: source of the probes; `PerSampleNoise` gives each sample its stream.
        on_step: see `Solver`.
        progress: called with the share of the work that is done, 0 to 1, of choosing a solver too.
        differentiable: keep the graph, so that log_prob can be differentiated by x0 and by the denoiser's weights.
            "adjoint" uses torchdiffeq's adjoint, in constant memory, with `Adaptive(per_sample=False)`.

    Raises:
        ValueError: for x0 that is not finite, a falling grid, a missing grid, or several of a solver, a tolerance and a
            plan.
    """
    divergence = divergence or Hutchinson()
    check_path(sde)
    check_samples(x0)
    if (tolerance is not None) + (plan is not None) + (solver is not None or ts is not None) > 1:
        raise ValueError("expected a tolerance, a plan, or a solver and its grid, got several of them: leave one")
    if tolerance is not None or plan is not None:
        check_one_level(sde, "a tolerance", "pass solver=RK4() and a grid, ts=grids.uniform(sde, 100).flip(0)")
    with torch.inference_mode(False):  # the divergence needs gradients, which tensors of inference mode do not carry
        x0 = x0.clone() if x0.is_inference() else x0
        bound, prior = BoundDenoiser(denoiser, cond, len(x0)), prior_log_prob or sde.prior_log_prob
        if tolerance is not None:
            plan = choose_solver(
                denoiser, sde, x0, tolerance, cond=cond, divergence=divergence, noise=noise,
                prior_log_prob=prior_log_prob, progress=part_of(progress, 0.0, CHOICE_SHARE),
            )  # fmt: skip
            progress = part_of(progress, CHOICE_SHARE, 1.0)
        solver = plan.solver if plan is not None else solver or Adaptive()
        integral = FlowIntegral(bound, sde, x0, divergence, solver, noise, prior, differentiable)
        on_step = with_steps(progress, on_step)
        solution = integral.solve(ts, on_step) if plan is None else integral.solve_within(plan, on_step)
    return _density(solution, divergence, plan)


def _density(solution: Solution, divergence: Divergence, plan: Plan | None) -> Density:
    log_prob, change, error = solution.log_prob, solution.change.detach(), None
    if divergence.shared:
        error = torch.zeros_like(log_prob).detach()
    elif divergence.count > 1:
        error = change.std(1) / divergence.count**0.5
    solver_error = None if plan is None or solution.estimate is None else plan.ratio * solution.estimate
    counts = solution.counts.double()
    return Density(
        log_prob,
        solution.latent,
        nfe=float(counts.mean()) if len(counts) else 0.0,
        nfe_max=int(counts.max()) if len(counts) else 0,
        std_error=error,
        solver_error=solver_error,
        parts={"prior": solution.prior.detach(), "change": change.mean(1)},
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
