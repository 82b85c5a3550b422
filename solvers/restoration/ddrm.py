"""DDRM: the measurement enters in the basis of its singular vectors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.inverse_problem import SingularValues
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.restoration.problem import Problem, Restoration
from scorefield.solvers.schedule import Schedule

ZERO = 1e-6  # of the largest singular value: what is below it counts as zero


@dataclass(frozen=True)
class DDRM(Restoration):
    """Kawar et al. 2022, "Denoising Diffusion Restoration Models", Eq. 4-5 and 7-8, on any path.

    With r = sigma' / alpha' of the next level, theta = D(x), and components i along the right singular vectors:

        s_i r >= noise_std:  x'_i = (1 - eta_b) theta_i + eta_b y_i / s_i + sqrt(r^2 - (eta_b noise_std / s_i)^2) z
        s_i r < noise_std:   x'_i = theta_i + sqrt(1 - eta^2) r (y_i - s_i theta_i) / noise_std + eta r z
        s_i = 0:             x'_i = theta_i + sqrt(1 - eta^2) r eps_i + eta r z

    times alpha'. The last update goes to r = 0. Without noise it gives  A x0 = y;  the published code leaves theta
    there. It needs the singular values of the measurement. It is a restorer, and no posterior sampler.

    Args:
        eta: share of fresh noise where y says less than x, or nothing; the paper's eta and eta_c, 0.85.
        eta_b: weight of y where it says more than x.

    Raises:
        ValueError: for shares outside [0, 1]; for a measurement whose singular values are not known.
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.eta <= 1 and 0 <= self.eta_b <= 1):
            raise ValueError(f"expected eta and eta_b within [0, 1], got {self.eta} and {self.eta_b}: use 0.85 and 1")

    def check_problem(self, problem: Problem) -> None:
        _svd(problem)

    def begin(self, problem: Problem, x: Tensor, schedule: Schedule) -> Tensor:
        svd, at, std = _svd(problem), schedule.scalars(0), problem.noise_std
        s, known = _nonzero(svd, x)
        known = known & (s * at.sigma > at.alpha * std)
        left = (1 - (at.alpha * std / (s * at.sigma)).square()).clamp(min=0).sqrt()
        component = svd.v_t(x)
        of_y = at.alpha * svd.u_t(problem.y) / s + left * component
        return x + svd.v(torch.where(known, of_y, component) - component)

    def update(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        to = schedule.scalars(i + 1)
        return to.alpha * self._next(problem, x, schedule, i, to.sigma / to.alpha, noise)

    def finish(self, problem: Problem, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        return self._next(problem, x, schedule, len(schedule) - 1, 0.0, noise)

    def _next(self, problem: Problem, x: Tensor, schedule: Schedule, i: int, rho: float, noise: Noise) -> Tensor:
        """X' / alpha' of the next level, whose noise is rho, from x at time i."""
        svd, at, std, kept = _svd(problem), schedule[i], problem.noise_std, math.sqrt(1 - self.eta**2)
        s, known = _nonzero(svd, x)
        theta = problem.prior(x, at.alpha, at.sigma)
        eps = (x - expand(at.alpha, x) * theta) / expand(at.sigma, x)
        z = noise(x) if rho > 0 else torch.zeros_like(x)
        free = theta + rho * (kept * eps + self.eta * z)  # where y says nothing
        y, theta_i, z_i, free_i = svd.u_t(problem.y), svd.v_t(theta), svd.v_t(z), svd.v_t(free)
        left = (rho**2 - (self.eta_b * std / s).square()).clamp(min=0).sqrt()
        above = (1 - self.eta_b) * theta_i + self.eta_b * y / s + left * z_i
        below = theta_i + kept * rho * (y - s * theta_i) / max(std, ZERO) + self.eta * rho * z_i
        inside = torch.where(known, torch.where(s * rho >= std, above, below), free_i)
        return free + svd.v(inside - free_i)


def _svd(problem: Problem) -> SingularValues:
    svd = problem.measurement.svd() if problem.measurement.linear else None
    if svd is None:
        raise ValueError(
            f"expected a measurement with known singular values for DDRM, got {shown(problem.measurement)}: use "
            "DAPS() or SplitGibbs(), which need none"
        )
    return svd


def _nonzero(svd: SingularValues, x: Tensor) -> tuple[Tensor, Tensor]:
    """The singular values, with 1 in the place of zeros, and which are not zero, (r,)."""
    s = svd.s.to(x)
    known = s > ZERO * s.max()
    return torch.where(known, s, 1.0), known
