"""What several test files judge by: every path, and two data sets whose answers are exact in any dimension."""

import math

import torch
from torch import Tensor

from models.analytic import Gaussian, GaussianMixture
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedSDE, SubVPSDE

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
