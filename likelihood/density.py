"""The exact log-density of a probability flow, by the instantaneous change of variables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from likelihood.divergence import Divergence, Hutchinson
from sde_lib import SDE
from sde_lib.broadcast import DenoiserLike, of_rows
from sde_lib.sde import Noise
from solvers import Adaptive, FlowSolver, Scales, Schedule, probability_flow
from solvers.flow import Rows, State
from solvers.solver import OnStep


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
    """

    log_prob: Tensor
    latent: Tensor | None
    nfe: float
    std_error: Tensor | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)


def log_likelihood(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    *,
    divergence: Divergence | None = None,
    solver: FlowSolver | None = None,
    ts: Tensor | None = None,
    prior_log_prob: Callable[[Tensor], Tensor] | None = None,
    noise: Noise = torch.randn_like,
    on_step: OnStep = None,
) -> Density:
    """Log p(x0) = log prior(x_T) + int_{t_min}^{t_max} div v dt  along  dx/dt = v  from x0  (Song et al. 2021, Eq. 39).

    x0 is taken as a point of the path at t_min: the density is that of the flow started from the prior and
    stopped there, with no last denoising.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x0: (B, *D), continuous: see `dequantise`.
        divergence: `Hutchinson(...)` (the default, one probe) or `Exact()`.
        solver: any that integrates a flow: `AdamsMoulton()`, `Adaptive(...)` (the default), `Heun()`, ...
        ts: the grid for solvers that keep one, rising; the others need only its ends, t_min and t_max.
        prior_log_prob: log-density of the latents in nats, (B, *D) -> (B,); by default the path's prior.
        noise: source of the probes; `PerSampleNoise` gives each sample its own.
        on_step: see `Solver`.

    Raises:
        ValueError: for a falling grid, or a solver that needs a grid and got none.
    """
    divergence, solver = divergence or Hutchinson(), solver or Adaptive()
    if not isinstance(solver, FlowSolver):
        raise ValueError(f"{solver} cannot integrate a density: use AdamsMoulton(), Heun() or Adaptive()")
    if ts is None:
        if not isinstance(solver, Adaptive):
            raise ValueError(f"{solver} keeps to a grid: pass a rising one, ts=grids.log_snr(sde, 100).flip(0)")
        ts = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    schedule = Schedule(sde, ts, x0)
    if not schedule.increasing:
        raise ValueError("expected a rising grid, from the data's end to the noise's: flip it, ts.flip(0)")

    evaluations = 0
    directions = divergence.directions(x0, noise)

    def flow(at: Scales, state: State, rows: Rows) -> State:
        nonlocal evaluations
        x, model = state[0], of_rows(denoiser, rows)
        evaluations += len(x)
        along = directions if divergence.shared else directions[:, rows]
        velocity, div = divergence(lambda y: probability_flow(model, y, at), x, along)
        return velocity, div

    with torch.no_grad():
        estimates = 1 if divergence.shared else len(directions)
        start = (x0, torch.zeros(len(x0), estimates, dtype=x0.dtype, device=x0.device))
        latent, change = solver.integrate(flow, start, schedule, on_step)
        log_prob = (prior_log_prob or sde.prior_log_prob)(latent) + change.mean(1)
        error = torch.zeros_like(log_prob) if divergence.shared else None
        if estimates > 1:
            error = change.std(1) / estimates**0.5
    return Density(log_prob, latent, evaluations / len(x0), error)
