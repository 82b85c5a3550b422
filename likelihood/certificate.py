"""Samples of a guided flow with exact weights: the posterior, its evidence, and how far the guidance was from it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.likelihood.density import log_likelihood
from scorefield.likelihood.divergence import Exact
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.inverse_problem import as_inverse_problem, check_measured
from scorefield.sde_lib.sde import Noise, check_one_level, check_path
from scorefield.solvers import RK4, FlowSolver, Schedule, effective_sample_size
from scorefield.solvers.solver import OnStep
from scorefield.solvers.twisted import chosen_by_weight

MOST_DIMS = 300  # an exact divergence takes one product for each


@dataclass(frozen=True)
class Certificate:
    """Independent draws x ~ q(x | y) of a guided flow, with weights  w = p(x) p(y | x) / q(x | y).

    Expectations with the weights are those of the posterior, whatever the guidance left out.

    Args:
        x: n draws for each of B measurements, (B, n, *D).
        log_weights: whose exponentials sum to one for each measurement, (B, n).
        log_evidence: log p(y), the log of the mean of w, in nats, (B,).
        std_error: of log_evidence, by the deviation of w, in nats, (B,).
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    std_error: Tensor

    @property
    def ess(self) -> Tensor:
        """The effective sample size, (B,): n where q is the posterior."""
        return effective_sample_size(self.log_weights)

    @property
    def share(self) -> Tensor:
        """The effective sample size as a share of n, (B,)."""
        return self.ess / self.log_weights.shape[1]

    def mean(self) -> Tensor:
        """The posterior mean, (B, *D), by the weights."""
        weights = self.log_weights.exp().to(self.x)
        return (weights.reshape(*weights.shape, *(1,) * (self.x.ndim - 2)) * self.x).sum(1)

    def resample(self, uniform: Tensor) -> Tensor:
        """Draws by the weights, (B, k, *D), from uniform numbers (B, k); a draw may come several times."""
        chosen = chosen_by_weight(self.log_weights, uniform)
        return self.x[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]


def certify(
    denoiser: DenoiserLike,
    sde: SDE,
    ts: Tensor,
    *,
    cond: Cond,
    draws: int = 400,
    solver: FlowSolver | None = None,
    noise: Noise = torch.randn_like,
    on_step: OnStep = None,
) -> Certificate:
    """Weighted draws of the posterior of an inverse problem, by exact likelihoods; for at most 300 dimensions.

    The flow of the guided denoiser takes the path's prior to the grid's end, with the integral of its divergence. So
    one pass gives x and  log q(x | y).  log p(x) is that of the prior's flow on the same grid: both are densities of
    the same noise level, which is small and takes the place of 0. The measurement sees x as x0.

    Args:
        denoiser: a posterior denoiser that can be differentiated, as `MMPS` or `PiGDM`.
        sde: the path.
        ts: a falling grid; 40 steps of `grids.log_snr` leave a few 1e-3 nats in a weight.
        cond: `{"y": y}` with y (B, *M), and the prior's own conditioning.
        draws: n, for each measurement.
        solver: a solver of a fixed grid; RK4 by default.
        noise: source of normals; a measurement has its stream.
        on_step: see `Solver`, for the first of both flows.

    Raises:
        ValueError: for more dimensions, and for a measurement without noise, whose posterior has no density.
    """
    check_path(sde)
    check_one_level(sde, "a certificate", "use Twisted(), which has an evidence of its own")
    problem = as_inverse_problem(denoiser, "a certificate")
    y = cond.get("y")
    y = check_measured(y, problem.measurement, len(y) if isinstance(y, Tensor) and y.ndim else 1)
    shape = tuple(problem.measurement.shape)
    _check(problem.noise_std, math.prod(shape), draws, ts)
    rows = torch.arange(len(y), device=y.device).repeat_interleave(draws)
    bound = BoundDenoiser(denoiser, cond, len(y)).take(rows)
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    with torch.inference_mode(False):  # tensors of inference mode do not carry the divergence's gradients
        start = sde.prior((len(y), draws, *shape), noise=noise, dtype=dtype, device=y.device).flatten(0, 1)
    solver = solver or RK4()
    x, log_q = _draw(bound, sde, start, ts, solver, noise, on_step)
    own = {key: value for key, value in bound.cond.items() if key != "y"}
    log_p = log_likelihood(problem.prior, sde, x, cond=own, divergence=Exact(), solver=solver, ts=ts.flip(0)).log_prob
    with torch.no_grad():
        log_w = log_p + problem.log_likelihood(x, bound.cond["y"]) - log_q
    precise = log_w if log_w.device.type == "mps" else log_w.double()
    return _certificate(x.reshape(len(y), draws, *shape), precise.reshape(len(y), draws))


def _check(noise_std: float, dims: int, draws: int, ts: Tensor) -> None:
    if dims > MOST_DIMS:
        raise ValueError(
            f"expected at most {MOST_DIMS} dimensions for exact weights, got {dims}: use Twisted(), which has an "
            "effective sample size and an evidence of its own"
        )
    if noise_std == 0:
        raise ValueError("expected a noise_std above 0 for a certificate, got 0: give a small one, as 0.01")
    if draws < 2:
        raise ValueError(f"expected 2 draws or more for a certificate, got {draws}: use 400")
    if len(ts) < 2 or bool(ts[0] < ts[-1]):
        raise ValueError("expected a falling grid of 2 times or more, got another: use grids.log_snr(sde, 40)")


def _draw(
    bound: BoundDenoiser, sde: SDE, start: Tensor, ts: Tensor, solver: FlowSolver, noise: Noise, on_step: OnStep
) -> tuple[Tensor, Tensor]:
    """X at the grid's end, (N, *D), and log q(x) in nats, (N,):  log prior(x_T) - int div v dt  along the way."""
    with torch.inference_mode(False), torch.no_grad():
        flow = FlowWithDivergence(bound, Exact(), fresh=False, noise=noise)
        schedule = Schedule(sde, ts, start)
        x, change = solver.integrate(flow, flow.begin(start), schedule, on_step)
        return x, sde.prior_log_prob(start) - change[:, 0]


def _certificate(x: Tensor, log_w: Tensor) -> Certificate:
    count = log_w.shape[1]
    log_evidence = log_w.logsumexp(1) - math.log(count)
    relative = (log_w - log_evidence[:, None]).exp()  # of mean 1
    return Certificate(x, log_w.log_softmax(1), log_evidence, relative.std(1) / count**0.5)
