"""Euler-Maruyama on the reverse-time SDE."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_lib import predict_noise
from sde_lib.broadcast import DenoiserLike
from sde_lib.sde import Noise
from solvers.schedule import Schedule
from solvers.solver import Solver


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x' = x + (f x - g^2 score) dt + g sqrt(|dt|) z, with dt < 0: one evaluation a step.

    Song et al. 2021, Eq. 6.
    """

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, dt = schedule[i], schedule[i + 1].t - schedule[i].t
        eps = predict_noise(denoiser, x, t.alpha, t.sigma)
        mean = (1 + t.drift * dt) * x + t.diffusion**2 / t.sigma * dt * eps
        return mean + t.diffusion * (-dt).sqrt() * noise(x), None
