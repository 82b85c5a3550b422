"""Tweedie moment projected diffusion."""

import torch
from torch import Tensor

from scorefield.models.guidance.inverse_problem import Guided
from scorefield.sde_lib.broadcast import Scale, expand, precise


class TMPD(Guided):
    """p(y | x) = N(y; A D(x), noise_std^2 I + diag(A V A^T 1)),  V = (sigma^2 / alpha) dD/dx.

    Boys et al. 2023, "Tweedie Moment Projected Diffusions for Inverse Problems". The covariance of MMPS is
    replaced by the sums of its rows, so it costs two vector-Jacobian products. Sums below zero count as zero. Where
    measured values are anticorrelated the sums are too small, and guidance too strong.

    Args:
        denoiser: E[x0 | x] of the prior, differentiable.
        measurement: A.
        noise_std: of the measurement, above 0.

    Raises:
        ValueError: for a noise_std of 0.
    """

    needs_noise = True

    def gradient(self, x: Tensor, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor, graph: bool) -> Tensor:
        """J^T A^T (y - A D) / (noise_std^2 + the sums), (B, *D)."""
        predicted = self.measurement(x0)
        back = self.pull(predicted, x, torch.ones_like(predicted), graph)
        gamma = expand(precise(sigma).square() / precise(alpha), predicted)
        variance = self.noise_std**2 + (gamma * self.push(x0, back, graph)).clamp(min=0)
        return self.pull(predicted, x, (y - predicted) / variance, graph)
