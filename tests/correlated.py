"""The exact denoiser of correlated data on a path with a noise level for each dimension, and its line integral."""

import numpy as np
import torch
from torch import Tensor

from scorefield.sde_lib import PerDimensionVP


class Correlated:
    """The denoiser of N(0, covariance), for scales (B, D).

    With `mean_only` it is told their means alone, as a network that takes a single noise level.
    """

    def __init__(self, covariance: Tensor, mean_only: bool = False) -> None:
        self.covariance, self.mean_only = covariance, mean_only

    def noise_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[eps | x] = S (A C A + S^2)^-1 x, the matrix (B, D, D)."""
        if self.mean_only:
            alpha, sigma = (scale.mean(-1, keepdim=True).expand_as(scale) for scale in (alpha, sigma))
        marginal = alpha[..., None] * self.covariance * alpha[..., None, :] + torch.diag_embed(sigma**2)
        return sigma[..., None] * torch.linalg.inv(marginal)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor, code: Tensor | None = None) -> Tensor:
        return (self.noise_gain(alpha, sigma) @ x[..., None])[..., 0]

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, code: Tensor | None = None) -> Tensor:
        return (x - sigma * self.noise(x, alpha, sigma)) / alpha

    def one_level(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The same denoiser for scales (B,)."""
        return self(x, *(scale.reshape(-1, 1).expand_as(x) for scale in (alpha, sigma)))


def nodes(count: int = 160) -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's nodes on [0, 1] and their weights, of sum 1."""
    node, weight = np.polynomial.legendre.leggauss(count)
    return torch.tensor((node + 1) / 2), torch.tensor(weight / 2)


def diffusion_loss(model: Correlated, path: PerDimensionVP) -> float:
    """-1/2 sum_d int lambda_d' E(eps_hat_d - eps_d)^2 dt of data with the model's covariance, along the first path."""
    t, weights = nodes()
    path = PerDimensionVP(*(each[:1].expand(len(t), -1) for each in path.coefficients), path.line.low, path.line.high)
    alpha, sigma = path.scales(t)
    gain = model.noise_gain(alpha, sigma)
    signal, error = gain * alpha[:, None], gain * sigma[:, None] - torch.eye(len(model.covariance))
    mse = ((signal @ model.covariance) * signal + error.square()).sum(2)
    return -float((weights / 2 * (path.slope(t) * mse).sum(1)).sum())
