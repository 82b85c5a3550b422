"""Guidance without a gradient of the denoiser, and the base of such methods."""

import abc
from typing import Any

import torch
from torch import Tensor

from scorefield.models.guidance.inverse_problem import (
    InverseProblem,
    Weighing,
    check_data_std,
    gaussian_potential,
    isotropic_variance,
)
from scorefield.models.guidance.posterior_variance import PosteriorVariance
from scorefield.models.measurements.base import Linear, Measurement
from scorefield.sde_lib.broadcast import Scale, expand
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise, predict_x0
from scorefield.sde_lib.twist import Twist


class GradientFree(InverseProblem):
    """D_y(x) = D(x) + C (y - A D(x)),  for a matrix C of the method, as a linear measurement has it.

    They need no derivative of the denoiser, so an evaluation costs no more than the denoiser's. These methods restore:
    they are no samplers of a posterior. D_y of a measurement without noise is the nearest that it allows.
    """

    needs_linear = True
    measurement: Linear

    @abc.abstractmethod
    def correction(self, residual: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """C (y - A D(x)), (B, *D), of the residual (B, *M)."""

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x, y] as the method has it, (B, *D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return self._corrected(predict_x0(self.prior, x, alpha, sigma, **cond), alpha, sigma, y)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Tensor:
        """E[eps | x, y] = eps - (alpha / sigma) (D_y - D), (B, *D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            a, s = expand(alpha, x), expand(sigma, x)
            eps = predict_noise(self.prior, x, alpha, sigma, **cond)
            x0 = (x - s * eps) / a
            return eps - a / s * (self._corrected(x0, alpha, sigma, y) - x0)

    def _corrected(self, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor) -> Tensor:
        return self.meet(x0 + self.correction(y - self.measurement(x0), alpha, sigma), y)


class JacobianFree(GradientFree, Weighing):
    """D_y = D + r^2 A^T (noise_std^2 I + r^2 A A^T)^-1 (y - A D),  r^2 = s^2 rho^2 / (s^2 + rho^2).

    rho is sigma / alpha. This is the posterior mean of x0 under N(D, r^2 I), as if the denoiser had no part in the
    gradient: PiGDM (Song et al. 2023) with r^2 in the place of  (sigma^2 / alpha) dD/dx.  It is exact for data of
    N(m, s^2 I).

    Args:
        denoiser: E[x0 | x] of the prior.
        measurement: A, linear.
        noise_std: of the measurement; 0 is allowed.
        data_std: s, the standard deviation of the data in a dimension. Or r^2 itself, as measured.

    Raises:
        ValueError: for measurements that are not linear, and what is no standard deviation.
    """

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

    def twist(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Twist:
        """The proposal D_y, and PiGDM's log N(y; A D, noise_std^2 I + r^2 A A^T), by one evaluation and no gradient."""
        x0 = predict_x0(self.prior, x, alpha, sigma, **cond)
        variance = isotropic_variance(alpha, sigma, self.data_std)
        potential, solved = gaussian_potential(self.measurement, y - self.measurement(x0), self.noise_std, variance)
        guided = x0 + expand(variance, x0) * self.measurement.adjoint(solved)
        return Twist(self.meet(guided, y), ((1.0, x0),), potential)

    def correction(self, residual: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        variance = isotropic_variance(alpha, sigma, self.data_std)
        return proximal(self.measurement, residual, self.noise_std, variance)


def proximal(measurement: Linear, residual: Tensor, noise_std: float, variance: Tensor) -> Tensor:
    """The move of x0 that minimises  |residual - A move|^2 / noise_std^2 + |move|^2 / variance,  (B, *D)."""
    weights = measurement.solve(residual, noise_std**2, variance)
    back = measurement.adjoint(weights)
    return expand(variance, back) * back
