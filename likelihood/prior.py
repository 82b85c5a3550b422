"""The distribution of latents that a likelihood ends with, and how far the data's own is from it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE

FULL = 4096  # dimensions up to which the data's covariance is taken whole


@dataclass(frozen=True)
class Moments:
    """The data's mean and standard deviation in each dimension, in the model's values, (*D)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x0: Tensor) -> "Moments":
        """Of samples (N, *D)."""
        return cls(x0.double().mean(0), x0.double().std(0, unbiased=False))


@dataclass(frozen=True)
class GaussianPrior:
    """Independent normals in each dimension: mean and std (*D), or scalars.

    Called with latents (B, *D) it gives their log-density in nats, (B,).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def standard(cls, sde: SDE) -> "GaussianPrior":
        """N(0, sigma(t_max)^2): what the model samples from."""
        return cls(torch.zeros((), dtype=torch.float64), sde.scales(sde.t_max)[1].double().cpu())

    @classmethod
    def matched(cls, sde: SDE, data: Moments) -> "GaussianPrior":
        """N(alpha m, alpha^2 s^2 + sigma^2) at t_max, for data of mean m and std s: the Gaussian nearest to p_T."""
        alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
        return cls(alpha * data.mean, (alpha**2 * data.std.square() + sigma**2).sqrt())

    def __call__(self, z: Tensor) -> Tensor:
        mean, std = self.mean.to(z), self.std.to(z)
        each = -((z - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2
        return each.expand_as(z).flatten(1).sum(1)


def prior_kl(sde: SDE, x0: Tensor, prior: GaussianPrior) -> float:
    """KL(p_T || prior) in nats, p_T taken for the Gaussian of samples x0 (N, *D) at t_max.

    Near t_max the data is a small part of x, and what is not Gaussian of it a smaller one. The covariance is whole for
    up to 4096 dimensions, then diagonal, which gives less. `sde.prior_kl` bounds it from above, image by image.
    """
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
    x = x0.double().cpu().flatten(1)
    mean, std = (each.double().expand(x0.shape[1:]).flatten() for each in (prior.mean, prior.std))
    shift = (alpha * x.mean(0) - mean) / std
    spread = alpha * (x - x.mean(0)) / std / math.sqrt(len(x))
    noise = (sigma / std).square()
    if x.shape[1] <= FULL:
        covariance = spread.T @ spread + noise.diag()
        volume, trace = torch.linalg.slogdet(covariance).logabsdet, covariance.trace()
    else:
        variance = spread.square().sum(0) + noise
        volume, trace = variance.log().sum(), variance.sum()
    return float(shift.square().sum() + trace - len(std) - volume) / 2
