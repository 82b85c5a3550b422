"""DDIM: exact steps for a denoiser that stands still."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_lib.broadcast import DenoiserLike
from sde_lib.sde import Noise
from solvers.schedule import Schedule
from solvers.solver import Solver


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s D + sqrt(sigma_s^2 - tau^2) eps + tau z,   tau^2 = eta^2 sigma_s^2 (1 - exp(lambda_t - lambda_s)).

    Song, Meng and Ermon 2021, Eq. 12 and 16, on any path. eta = 0 is deterministic, of order 1, and goes
    both ways; eta = 1 is DDPM's ancestral sampling. One evaluation a step.

    Raises:
        ValueError: if eta is not within [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"expected eta within [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, s = schedule[i], schedule[i + 1]
        x0 = denoiser(x, t.alpha, t.sigma)
        if not self.stochastic:
            return s.sigma / t.sigma * x + (s.alpha - t.alpha * s.sigma / t.sigma) * x0, None
        tau = self.eta * s.sigma * torch.sqrt(-torch.expm1(t.log_snr - s.log_snr))
        kept = torch.sqrt(s.sigma**2 - tau**2) / t.sigma
        return kept * x + (s.alpha - t.alpha * kept) * x0 + tau * noise(x), None
