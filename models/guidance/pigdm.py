"""Pseudo-inverse guidance, as a posterior score."""

from torch import Tensor

from scorefield.models.guidance.inverse_problem import Guided, check_data_std, gaussian_potential, isotropic_variance
from scorefield.models.guidance.posterior_variance import PosteriorVariance
from scorefield.models.measurements.base import Linear, Measurement
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike


class PiGDM(Guided):
    """p(y | x) = N(y; A D(x), noise_std^2 I + r^2 A A^T),  r^2 = s^2 rho^2 / (s^2 + rho^2),  rho = sigma / alpha.

    Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", Eq. 7, with its gradient
    taken as it is. (The published step weighs it by r^2 and has no measurement noise.) It is exact for data
    of N(m, s^2 I).

    Args:
        denoiser: E[x0 | x] of the prior.
        measurement: A, linear.
        noise_std: of the measurement; 0 is allowed.
        data_std: s, the standard deviation of the data in a dimension; the paper has 1. Or r^2 itself, as measured.

    Raises:
        ValueError: for measurements that are not linear, and what is no standard deviation.
    """

    needs_linear = True
    measurement: Linear

    def __init__(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise_std: float,
        data_std: float | PosteriorVariance = 1.0,
    ) -> None:
        super().__init__(denoiser, measurement, noise_std)
        check_data_std(data_std)
        self.data_std = data_std

    def log_potential(self, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor) -> Tensor:
        """Log p(y | x) up to its normaliser, which all samples of a noise level share, in nats, (B,)."""
        variance = isotropic_variance(alpha, sigma, self.data_std)
        return gaussian_potential(self.measurement, y - self.measurement(x0), self.noise_std, variance)[0]
