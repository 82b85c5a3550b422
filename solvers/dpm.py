"""DPM-Solver: the probability flow's linear part exactly, the denoiser by extrapolation in log-SNR."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_lib import predict_noise
from sde_lib.broadcast import DenoiserLike
from sde_lib.sde import Noise
from solvers.schedule import Scales, Schedule
from solvers.solver import Solver


@dataclass(frozen=True)
class DPMSolver(Solver):
    """Exponential integrators of order 1 and 2 in half the log-SNR, l = lambda / 2, h = l_s - l_t.

        predict "x0":   x_s = sigma_s / sigma_t x - alpha_s (e^-h - 1) P      (DPM-Solver++, Eq. 9)
        predict "eps":  x_s = alpha_s / alpha_t x - sigma_s (e^h - 1) P       (DPM-Solver, Eq. 3.7)

    where P is the prediction at t (order 1, which is DDIM), at the middle of the step (order 2, singlestep,
    two evaluations), or extrapolated from the step before (order 2, multistep, one evaluation; the
    first step is of order 1).

    Lu et al. 2022, "DPM-Solver", Alg. 1; "DPM-Solver++", Alg. 2.

    Args:
        order: 1 or 2.
        multistep: use the last step's evaluation rather than one in the middle.
        predict: what is held still over a step, "x0" or "eps".
    """

    order: int = 2
    multistep: bool = True
    predict: str = "x0"

    def __post_init__(self) -> None:
        if self.order not in (1, 2) or self.predict not in ("x0", "eps"):
            raise ValueError(
                f"expected order 1 or 2 and predict 'x0' or 'eps', got {self.order!r} and {self.predict!r}"
            )

    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, s = schedule[i], schedule[i + 1]
        prediction = current = self._prediction(denoiser, x, t)
        if self.order == 2 and not self.multistep:
            middle = schedule.middle(i)
            prediction = self._prediction(denoiser, self._across(x, t, middle, current), middle)
        elif self.order == 2 and memory is not None:
            before, previous = memory
            ratio = (s.log_snr - t.log_snr) / (t.log_snr - before.log_snr)
            prediction = current + ratio / 2 * (current - previous)
        return self._across(x, t, s, prediction), (t, current)

    def _prediction(self, denoiser: DenoiserLike, x: Tensor, t: Scales) -> Tensor:
        if self.predict == "x0":
            return denoiser(x, t.alpha, t.sigma)
        return predict_noise(denoiser, x, t.alpha, t.sigma)

    def _across(self, x: Tensor, t: Scales, s: Scales, prediction: Tensor) -> Tensor:
        h = (s.log_snr - t.log_snr) / 2
        if self.predict == "x0":
            return s.sigma / t.sigma * x - s.alpha * torch.expm1(-h) * prediction
        return s.alpha / t.alpha * x - s.sigma * torch.expm1(h) * prediction
