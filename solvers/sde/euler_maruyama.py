"""The reverse-time SDE in its two plain discretisations."""

import math
from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib import expand, predict_noise
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.exponential import Coefficients
from scorefield.solvers.multistep.linear_multistep import LinearMultistep
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History


@dataclass(frozen=True)
class EulerMaruyama(LinearMultistep):
    """x' = x + (f x - g^2 score) dt + g sqrt(|dt|) z, with dt < 0: one evaluation a step.

    Song et al. 2021, Eq. 6.
    """

    predict = "eps"

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def elementwise(self) -> bool:
        return True

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        if not schedule.sde.per_dimension:
            return super().step(denoiser, x, schedule, i, noise, memory)
        at, dt = schedule[i], float(schedule.ts[i + 1] - schedule.ts[i])
        eps = predict_noise(denoiser, x, at.alpha, at.sigma)
        drift = expand(at.drift * dt, x) * x + expand(at.diffusion**2 / at.sigma * dt, x) * eps
        return x + drift + expand(at.diffusion * math.sqrt(-dt), x) * noise(x), None

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        t, dt = schedule.scalars(i), schedule.scalars(i + 1).t - schedule.scalars(i).t
        weight = t.diffusion**2 / t.sigma * dt
        return Coefficients(1 + t.drift * dt, (weight,), t.diffusion * math.sqrt(-dt))


@dataclass(frozen=True)
class ReverseDiffusion(LinearMultistep):
    """x' = (2 - r) x + G^2 score + G z,   r = alpha_t / alpha_s,  G^2 = sigma_t^2 - r^2 sigma_s^2.

    The forward step x_t = r x_s + G z, turned round (Song et al. 2021, Appendix E, Eq. 46; on the variance-preserving
    path r = sqrt(1 - beta) and G^2 = beta). One evaluation a step.
    """

    predict = "eps"

    @property
    def stochastic(self) -> bool:
        return True

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        variance = t.sigma**2 * -math.expm1(t.log_snr - s.log_snr)
        return Coefficients(2 - t.alpha / s.alpha, (-variance / t.sigma,), math.sqrt(variance))
