"""Sequential Monte Carlo around guided stochastic steps: samples of a posterior, with its evidence.

References:
    Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models" (TDS), Algorithm 1.
    Skreta et al. 2025, "Feynman-Kac Correctors in Diffusion", for tilted laws.
    Douc and Cappe 2005, "Comparison of Resampling Schemes for Particle Filtering", for systematic resampling.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.sde_lib.twist import Twist, as_twisting
from scorefield.solvers.multistep.dpm import StochasticDPMSolver
from scorefield.solvers.multistep.exponential import Coefficients
from scorefield.solvers.multistep.linear_multistep import combine
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Progress, Solver


@dataclass(frozen=True)
class Particles:
    """Weighted samples of x0 for each of B samples.

    Args:
        x: estimates of x0, (B, K, *D).
        log_weights: whose exponentials sum to one for each sample, (B, K).
        log_evidence: of each sample, in nats, (B,):  log p(y)  for a measurement y. The estimate of p(y) is unbiased
            for the discretised model. Of a measurement without noise it has an unknown constant: only differences of
            one problem, path and grid mean something.
        least_ess: the least effective sample size on the way, (B,).
        resampled: how many times each sample's particles were drawn anew, (B,).
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    least_ess: Tensor
    resampled: Tensor

    @property
    def ess(self) -> Tensor:
        """The effective sample size of the final weights, (B,)."""
        return effective_sample_size(self.log_weights)

    def draw(self, uniform: Tensor) -> Tensor:
        """One particle for each sample by its weights, (B, *D), from uniform numbers (B,)."""
        chosen = chosen_by_weight(self.log_weights, uniform[:, None])[:, 0]
        return self.x[torch.arange(len(self.x), device=self.x.device), chosen]


@dataclass(frozen=True)
class Twisted(Solver):
    """Reverse steps of K particles for each sample, weighted and resampled: exact as K and the steps grow.

    A particle at x_t proposes x_s by the prior's step, with the guided estimate D_y in it. Its weight is multiplied by

        p(x_s | x_t) pi_s(x_s) / (q(x_s | x_t) pi_t(x_t)),

    where p is the prior's own step, q the proposal, and pi_t(x_t) the method's p(y | x_t)  (TDS, Eq. 11). The
    last pi is the likelihood  p(y | x0)  itself, at x0 = D(x). So guidance only has to be good, and not exact.
    Particles are resampled systematically where their effective sample size falls below a share of K.

    The denoiser has a method `twist`: `JacobianFree`, `PiGDM`, `DPS` and `MMPS` of `models.guidance` for measurements,
    and `ClassifierFree` for the tilted law  p(x)^(1 - w) p(x | c)^w,  whose weights are those of its two estimates.
    Each sample has its own K particles, and noise from its own stream. The first particle begins at the given x and
    the others are drawn from the path's prior, so a grid begins at t_max. It returns one particle for each sample;
    `sample_particles` returns all.

    Args:
        particles: K. With one there is nothing to weigh: it is the guided `StochasticDPMSolver`.
        threshold: the share of K below which particles are resampled; 0 for never.
        order: of the steps' drift, 1 to 3, as of `StochasticDPMSolver`; 1 are ancestral steps. Order 2 has less error
            in the evidence than 1, and equal samples (docs/control.md).

    Raises:
        ValueError: for no particle, or a threshold that is no share.
    """

    particles: int = 8
    threshold: float = 0.5
    order: int = 2

    def __post_init__(self) -> None:
        if self.particles < 1 or not 0 <= self.threshold <= 1:
            raise ValueError(
                f"expected 1 particle or more and a threshold within [0, 1], got {self.particles} and "
                f"{self.threshold}: use 8 to 20 particles and 0.5"
            )
        StochasticDPMSolver(self.order)  # raises for another order

    @property
    def _steps(self) -> StochasticDPMSolver:
        return StochasticDPMSolver(self.order)

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def returns_x0(self) -> bool:
        return True

    def sample_particles(
        self,
        denoiser: DenoiserLike,
        sde: SDE,
        x: Tensor,
        ts: Tensor,
        *,
        cond: Cond | None = None,
        noise: Noise = torch.randn_like,
        on_step: OnStep = None,
    ) -> Particles:
        """All particles with their weights, and the evidence; arguments as those of any solver."""
        kept = _Kept(self.particles, self.threshold, self.order)
        kept(denoiser, sde, x, ts, cond=cond, noise=noise, on_step=on_step)
        return kept.results[0]

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        """One step of the proposal, without weights."""
        return self._steps.step(denoiser, x, schedule, i, noise, memory)

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        """One particle for each sample, drawn by the weights, (B, *D)."""
        particles, uniform = self._particles(denoiser, x, schedule, noise, on_step)
        return particles.draw(uniform)

    def _uniforms(self, x: Tensor, steps: int, noise: Noise) -> Iterator[Tensor]:
        """Uniform numbers (B,) of each sample's own stream: one for each step, and one for the last draw."""
        if self.particles == 1:  # which needs none: the streams are those of the solver alone
            return iter([x.new_zeros(len(x))] * (steps + 1))
        normals = noise(x.new_empty(len(x), steps + 1))
        return iter(torch.special.ndtr(normals.double()).clamp(max=1 - 1e-12).unbind(1))

    def _particles(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep
    ) -> tuple[Particles, Tensor]:
        """All particles, and a uniform number for each sample, (B,), to draw one."""
        uniforms = self._uniforms(x, len(schedule), noise)
        twisting, count = as_twisting(denoiser.denoiser), self.particles
        rows = torch.arange(len(x), device=x.device).repeat_interleave(count)
        cond = denoiser.take(rows).cond
        x = self._start(x, schedule, noise)
        last: list[Twist] = []
        weights = _Weights(len(x) // count, count, x.device)
        for i in range(len(schedule) - 1):
            at = schedule[i]
            last = [twisting.twist(x, at.alpha, at.sigma, **cond), *last][: self.order]
            weights.add(last[0].log_potential)
            chosen = weights.resample(next(uniforms), self.threshold)
            if chosen is not None:
                x, last = x[chosen], [_take(twist, chosen) for twist in last]
            z = noise(x.reshape(-1, count, *x.shape[1:])).reshape(x.shape)
            step = self._steps.coefficients(schedule, i, len(last))
            x = combine(step, x, [twist.guided for twist in last], step.noise * z)
            weights.add(_log_ratio(step, last, z) - last[0].log_potential)
            if on_step is not None:
                first = x.reshape(-1, count, *x.shape[1:])[:, 0]
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), first))
        end = schedule[-1]
        x0, log_likelihood = twisting.finish(x, end.alpha, end.sigma, **cond)
        weights.add(log_likelihood)
        return weights.particles(x0), next(uniforms)

    def _start(self, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        """The state of all particles at the first time, (B * K, *D): the first is x, the others are of the prior."""
        if self.particles == 1:
            return x
        shape = (len(x), self.particles - 1, *x.shape[1:])
        more = schedule.sde.prior(shape, noise=noise, dtype=x.dtype, device=x.device)
        return torch.cat([x.unsqueeze(1), more], 1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _Kept(Twisted):
    """Keeps all particles of its run."""

    results: list[Particles] = field(default_factory=list)

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        self.results[:] = [self._particles(denoiser, x, schedule, noise, on_step)[0]]
        return x


class _Weights:
    """The particles' weights in float64, and the log evidence of the steps so far."""

    def __init__(self, batch: int, count: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.log = torch.zeros(batch, count, dtype=dtype, device=device)
        self.log_evidence = self.log.new_zeros(batch)
        self.least = torch.full_like(self.log_evidence, count)
        self.resampled = torch.zeros_like(self.log_evidence, dtype=torch.long)

    def add(self, log_factor: Tensor) -> None:
        self.log = self.log + log_factor.to(self.log).reshape(self.log.shape)

    def resample(self, uniform: Tensor, threshold: float) -> Tensor | None:
        """The rows (B * K) that go on, or None if all do. Samples with enough different particles keep theirs."""
        batch, count = self.log.shape
        ess = effective_sample_size(self.log)
        self.least = torch.minimum(self.least, ess)
        needed = ess < threshold * count
        if count == 1 or not bool(needed.any()):
            return None
        comb = (torch.arange(count, device=uniform.device) + uniform[:, None]) / count
        own = torch.arange(count, device=uniform.device).expand(batch, count)
        chosen = torch.where(needed[:, None], chosen_by_weight(self.log, comb), own)
        self.log_evidence = self.log_evidence + torch.where(needed, self._log_mean(), 0.0)
        self.log = torch.where(needed[:, None], 0.0, self.log)
        self.resampled = self.resampled + needed
        return (chosen + count * torch.arange(batch, device=chosen.device)[:, None]).flatten()

    def particles(self, x0: Tensor) -> Particles:
        """The result, for estimates of x0 (B * K, *D)."""
        ess = effective_sample_size(self.log)
        return Particles(
            x0.reshape(*self.log.shape, *x0.shape[1:]),
            self.log.log_softmax(1),
            self.log_evidence + self._log_mean(),
            torch.minimum(self.least, ess),
            self.resampled,
        )

    def _log_mean(self) -> Tensor:
        return self.log.logsumexp(1) - math.log(self.log.shape[1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last axis, (B, K) -> (B,)  (Kong 1992)."""
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


def chosen_by_weight(log_weights: Tensor, at: Tensor) -> Tensor:
    """The numbers (B, N) of the particles at shares `at` (B, N) of the summed weights (B, K)."""
    total = log_weights.softmax(1).cumsum(1)
    at = at.to(total).contiguous()
    return torch.searchsorted(total / total[:, -1:], at, right=True).clamp(max=log_weights.shape[1] - 1)


def _take(twist: Twist, rows: Tensor) -> Twist:
    factors = tuple(
        (power[rows] if isinstance(power, Tensor) and power.ndim else power, estimate[rows])
        for power, estimate in twist.factors
    )
    return Twist(twist.guided[rows], factors, twist.log_potential[rows])


def _log_ratio(step: Coefficients, last: list[Twist], z: Tensor) -> Tensor:
    """Log of the product of the factors' steps over the proposal's, at the state that z has led to, (B * K,).

    All are Gaussians of the variance tau^2, with means that differ by d_j:  -sum_j power_j (|d_j|^2 / 2 + d_j z),
    in units of tau.
    """
    total = torch.zeros(len(z), dtype=torch.float64 if z.device.type != "mps" else z.dtype, device=z.device)
    for j, (power, _) in enumerate(last[0].factors):
        apart = torch.zeros_like(z)
        for weight, twist in zip(step.weights, last, strict=True):
            apart = torch.add(apart, twist.guided - twist.factors[j][1], alpha=weight / step.noise)
        total = total - power * (apart * (apart / 2 + z)).flatten(1).sum(1).to(total)
    return total
