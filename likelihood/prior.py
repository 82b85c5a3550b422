"""The Gaussian prior at t_max that a likelihood ends with, and its distance from the data's distribution there."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import expand, precise

FULL_COVARIANCE_DIMS = 4096  # above, the covariance of the data is taken as diagonal


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
        """N(0, sigma(t_max)^2), from which the model samples."""
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

    def kl(self, sde: SDE, x0: Tensor, t: float) -> Tensor:
        """KL(q(x_t | x0) || prior) = KL(N(alpha x0, sigma^2) || N(mean, std^2)) in nats, (B,), in float64.

        Its mean over the data bounds KL(p_t || prior) from above (Kingma et al. 2021, Eq. 11, prior term).
        """
        x0 = precise(x0)
        alpha, sigma = (expand(scale, x0) for scale in sde.scales(t))
        mean, std = self.mean.to(x0), self.std.to(x0)
        shift, ratio = (alpha * x0 - mean) / std, sigma / std
        return ((shift.square() + ratio.square() - 1) / 2 - ratio.log()).expand_as(x0).flatten(1).sum(1)


def prior_kl(sde: SDE, x0: Tensor, prior: GaussianPrior) -> float:
    """KL(p_T || prior) in nats, with p_T approximated by the Gaussian of samples x0 (N, *D) at t_max.

    Near t_max the data is a small part of x, and its deviation from a Gaussian is smaller still. Up to 4096 dimensions
    the covariance is complete; above, it is diagonal, which gives a smaller value. `GaussianPrior.kl` is the upper
    bound.
    """
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
    x = x0.double().cpu().flatten(1)
    mean, std = (each.double().expand(x0.shape[1:]).flatten() for each in (prior.mean, prior.std))
    shift = (alpha * x.mean(0) - mean) / std
    spread = alpha * (x - x.mean(0)) / std / math.sqrt(len(x))
    noise = (sigma / std).square()
    if x.shape[1] <= FULL_COVARIANCE_DIMS:
        covariance = spread.T @ spread + noise.diag()
        volume, trace = torch.linalg.slogdet(covariance).logabsdet, covariance.trace()
    else:
        variance = spread.square().sum(0) + noise
        volume, trace = variance.log().sum(), variance.sum()
    return float(shift.square().sum() + trace - len(std) - volume) / 2
