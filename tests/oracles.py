"""What several test files judge by: every path, and two data sets whose answers are exact in any dimension."""

import math

import torch
from torch import Tensor

from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedSDE, SubVPSDE

PATHS: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(sigma_max=20.0),
    "edm": EDMSDE(),
    "cosine": CosineSDE(),
    "rectified": RectifiedSDE(),
    "ddpm-linear": DiscreteVPSDE("linear"),
    "ddpm-scaled-linear": DiscreteVPSDE("scaled_linear"),
    "ddpm-cosine": DiscreteVPSDE("cosine"),
}

SHAPES: tuple[tuple[int, ...], ...] = ((2,), (3, 8, 8), (2, 5, 7))


def gaussian(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """N(m, s^2), no two coordinates alike: means within [-0.8, 0.8], standard deviations within [0.3, 1]."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    mean, std = 0.8 * torch.sin(1.0 + 1.7 * i), 0.65 + 0.35 * torch.cos(2.3 * i)
    return Gaussian(mean.reshape(shape).to(dtype), std.reshape(shape).to(dtype))


class Plain(GaussianMixture):
    """A Gaussian with both its answers written out: the same numbers as a mixture of one, several times quicker."""

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.means[0] + alpha * self.stds[0] ** 2 * self._pull(x, alpha, sigma)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma * self._pull(x, alpha, sigma)

    def _pull(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - alpha * self.means[0]) / ((alpha * self.stds[0]) ** 2 + sigma**2)


def plain(shape: tuple[int, ...]) -> Plain:
    """`gaussian`, for many calls with one scale for the batch."""
    model = gaussian(shape)
    return Plain(model.means, model.stds, model.weights)


def mixture(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Two modes of weights 0.3 and 0.7, a unit from the origin each way along a slanted line, with
    standard deviations of 0.5 and 0.7: in any dimension they overlap a little, so both matter."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    direction = 1.5 + torch.sin(1.0 + 1.7 * i)
    mean = (direction / direction.norm()).reshape(shape)
    stds, weights = torch.tensor([0.5, 0.7], dtype=dtype), torch.tensor([0.3, 0.7], dtype=dtype)
    return GaussianMixture(torch.stack([mean, -mean]).to(dtype), stds, weights)


def batch(model: GaussianMixture, n: int, seed: int = 0) -> Tensor:
    """n samples of a model, the same whenever asked."""
    return model.sample((n,), generator=torch.Generator().manual_seed(seed))
