"""A linear-Gaussian model of images with codes, in which all terms of the bound through an autoencoder are known."""

import math

import torch
from torch import Tensor

from scorefield.likelihood.pixels import PixelDistribution
from scorefield.models.analytic import Gaussian
from scorefield.models.moments import Moments

SIDE, CODES, NOISE, BATCH = 3, 2, 0.3, 5  # images (1, 3, 3), codes (2, 1, 1), the deviation of p(x | z)


class LinearAutoencoder:
    """X = W z + b + 0.3 eps, z ~ N(m, s^2), with orthogonal columns of W, so that p(z | x) is diagonal.

    `spread` multiplies the deviation of the encoder's q(z | x): at 1, q is the exact p(z | x).
    """

    def __init__(self, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        columns = torch.linalg.qr(torch.randn(SIDE**2, CODES, generator=generator, dtype=torch.float64)).Q
        self.w, self.b = (
            columns * torch.tensor([2.0, 0.5], dtype=torch.float64),
            torch.linspace(-1, 1, SIDE**2).double(),
        )
        self.m, self.s = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.8, 1.3], dtype=torch.float64)
        self.spread = spread
        x = torch.randn(BATCH, SIDE**2, generator=generator, dtype=torch.float64)
        self.x0 = x.reshape(BATCH, 1, SIDE, SIDE)
        precision = 1 / self.s.square() + self.w.square().sum(0) / NOISE**2
        self.var = 1 / precision

    def posterior(self, images: Tensor) -> Tensor:
        pulled = (images.flatten(1) - self.b) @ self.w / NOISE**2 + self.m / self.s.square()
        return pulled * self.var

    def moments(self, images: Tensor) -> Moments:
        mean = self.posterior(images)
        log_var = (self.var * self.spread**2).log().expand_as(mean)
        return Moments(mean[..., None, None], log_var[..., None, None])

    def decode(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.w.T + self.b).reshape(-1, 1, SIDE, SIDE)

    def prior(self) -> Gaussian:
        return Gaussian(self.m.reshape(CODES, 1, 1), self.s.reshape(CODES, 1, 1))

    def log_prob(self) -> Tensor:
        """The exact log p(x0), of N(W m + b, W s^2 W' + 0.09)."""
        covariance = (self.w * self.s.square()) @ self.w.T + NOISE**2 * torch.eye(SIDE**2).double()
        model = torch.distributions.MultivariateNormal(self.w @ self.m + self.b, covariance)
        return model.log_prob(self.x0.flatten(1))

    def gap(self) -> float:
        """KL(q(z | x) || p(z | x)) of two normals of one mean."""
        return CODES * ((self.spread**2 - 1) / 2 - math.log(self.spread))


PIXELS = PixelDistribution("normal", torch.tensor([[NOISE]], dtype=torch.float64), None)
