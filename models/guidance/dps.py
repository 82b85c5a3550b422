"""Diffusion posterior sampling."""

import math

import torch
from torch import Tensor

from scorefield.models.guidance.inverse_problem import Guided, check_data_std, isotropic_variance
from scorefield.models.guidance.posterior_variance import PosteriorVariance
from scorefield.models.measurements.base import Measurement
from scorefield.sde_lib.broadcast import Scale, expand, precise
from scorefield.sde_lib.denoiser import DenoiserLike


class DPS(Guided):
    """p(y | x) = N(y; A(D(x)), (noise_std^2 + spread r^2) I),  r^2 = s^2 rho^2 / (s^2 + rho^2).

    Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", Eq. 11, for any differentiable
    measurement. The paper has no spread, so its p(y | x) is too narrow at high noise. A spread of 1 is the variance
    of PiGDM for an A of orthonormal rows, and is what `Twisted` needs.

    With a `scale` it is the published Algorithm 1, whose ancestral steps end with  x <- x - scale grad |y - A(D(x))|.
    The norm is not squared, and is each sample's own. A denoiser knows no steps, so `log_snr_step` is the
    log-SNR between two of them:

        log p(y | x) = -scale / (sigma^2 (1 - exp(-log_snr_step))) |y - A(D(x))|.

    An ancestral step of this length then adds the published vector, times the ratio of the step's two alphas.

    Args:
        denoiser: E[x0 | x] of the prior.
        measurement: A, linear or not.
        noise_std: of the measurement.
        scale: the published zeta, or None for the formula.
        spread: the share of x0's own variance, 0 or more.
        data_std: s, the standard deviation of the data in a dimension. Or r^2 itself, as measured.
        log_snr_step: the grid's step in  log(alpha^2 / sigma^2),  of which the scale is a rate.

    Raises:
        ValueError: for a noise_std of 0 with neither spread nor scale, or a setting that is below zero.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise_std: float,
        scale: float | None = None,
        spread: float = 0.0,
        data_std: float | PosteriorVariance = 1.0,
        log_snr_step: float = 0.2,
    ) -> None:
        if min(spread, 0.0 if scale is None else scale) < 0 or not log_snr_step > 0:
            raise ValueError(
                f"expected a scale and a spread of 0 or more and a log_snr_step above 0, got {scale}, {spread} and "
                f"{log_snr_step}: use spread=1, or scale=0.3"
            )
        check_data_std(data_std)
        self.needs_noise = scale is None and spread == 0  # the base asks
        super().__init__(denoiser, measurement, noise_std)
        self.scale, self.spread = scale, spread
        self.data_std, self.log_snr_step = data_std, log_snr_step

    def log_potential(self, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor) -> Tensor:
        """Log p(y | x) up to its normaliser, which all samples of a noise level share, in nats, (B,)."""
        residual: Tensor = (y - self.measurement(x0)).flatten(1)
        if self.scale is not None:
            rate = self.scale / (precise(sigma).square() * -math.expm1(-self.log_snr_step))
            norm: Tensor = torch.linalg.vector_norm(residual, dim=1)
            return -rate.to(residual) * norm
        variance = self.noise_std**2 + self.spread * isotropic_variance(alpha, sigma, self.data_std)
        return -(residual.square() / expand(variance, residual)).sum(1) / 2
