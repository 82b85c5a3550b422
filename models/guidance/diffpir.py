"""Denoising with a proximal step towards the measurement."""

from torch import Tensor

from scorefield.models.guidance.inverse_problem import ratio
from scorefield.models.guidance.jacobian_free import GradientFree, proximal
from scorefield.models.measurements.base import Measurement
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike


class DiffPIR(GradientFree):
    """D_y = argmin_z |y - A z|^2 / noise_std^2 + lam |z - D(x)|^2 / rho^2,  rho = sigma / alpha.

    Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration". The paper then adds noise
    of which zeta is new: that is the solver's, as `DDIM(eta=...)`.

    Args:
        denoiser: E[x0 | x] of the prior.
        measurement: A, linear.
        noise_std: of the measurement; 0 is allowed.
        lam: how strongly the denoiser's answer holds; the published configurations have 1.

    Raises:
        ValueError: for measurements that are not linear, and a lam of 0 or less.
    """

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement, noise_std: float, lam: float = 1.0) -> None:
        super().__init__(denoiser, measurement, noise_std)
        if not lam > 0:
            raise ValueError(f"expected a lam above 0, got {lam}: use 1 for DiffPIR as published")
        self.lam = lam

    def correction(self, residual: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        return proximal(self.measurement, residual, self.noise_std, ratio(alpha, sigma) / self.lam)
