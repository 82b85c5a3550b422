"""The Gaussian prior at t_max that a likelihood ends with, and its distance from the data's distribution there."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import expand, precise

FULL_COVARIANCE_DIMS = 4096  # above, the covariance of the data is taken as diagonal
GROUP = 512  # samples whose covariance is added at once


@dataclass(frozen=True)
class Moments:
    """The data's mean and standard deviation in each dimension, in the model's values, (*D)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x0: Tensor | Iterable[Tensor]) -> "Moments":
        """Of samples (N, *D), or of batches of them, of which one is held at a time."""
        moments = RunningMoments()
        for batch in [x0] if isinstance(x0, Tensor) else x0:
            moments.add(batch)
        return cls(moments.mean, (moments.scatter / moments.count).sqrt())


class RunningMoments:
    """Mean and covariance of samples (B, *D) that are added batch by batch, in float64.

    `scatter` is the sum of (x - mean)^2, (*D), or with `full` that of (x - mean) (x - mean)^T, for samples (B, D).
    Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", Eq. 1.5.
    """

    def __init__(self, full: bool = False) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())
        self._full = full

    def add(self, x: Tensor) -> None:
        """Add samples (B, *D)."""
        x, before = x.double(), self.count
        mean = x.mean(0)
        away, self.count = x - mean, before + len(x)
        apart = mean - self.mean.to(mean)
        scatter, square = (away.T @ away, apart.outer(apart)) if self._full else (away.square().sum(0), apart.square())
        self.mean = self.mean.to(mean) + apart * (len(x) / self.count)
        self.scatter = self.scatter.to(mean) + scatter + square * (before * len(x) / self.count)


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
        return self.kl_of_each(sde, x0, t).flatten(1).sum(1)

    def kl_of_each(self, sde: SDE, x0: Tensor, t: float) -> Tensor:
        """The part of each dimension in `kl`, (B, *D)."""
        x0 = precise(x0)
        alpha, sigma = (expand(scale, x0) for scale in sde.scales(t))
        mean, std = self.mean.to(x0), self.std.to(x0)
        shift, ratio = (alpha * x0 - mean) / std, sigma / std
        return ((shift.square() + ratio.square() - 1) / 2 - ratio.log()).expand_as(x0)


def prior_kl(sde: SDE, x0: Tensor | Iterable[Tensor], prior: GaussianPrior) -> float:
    """KL(p_T || prior) in nats, with p_T approximated by the Gaussian of samples at t_max.

    x0 are the samples (N, *D), or batches of them, of which one is held at a time. Near t_max the data is a small part
    of x, and its deviation from a Gaussian is smaller still. Up to 4096 dimensions the covariance is complete; above,
    it is diagonal, which gives a smaller value. `GaussianPrior.kl` is the upper bound.
    """
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
    data, shape = RunningMoments(), torch.Size()
    for group in _groups([x0] if isinstance(x0, Tensor) else x0):
        if not data.count:
            shape = group.shape[1:]
            data = RunningMoments(full=shape.numel() <= FULL_COVARIANCE_DIMS)
        data.add(group.flatten(1))
    mean, std = (each.double().cpu().expand(shape).flatten() for each in (prior.mean, prior.std))
    shift, scale, noise = (alpha * data.mean - mean) / std, alpha / std, (sigma / std).square()
    covariance = data.scatter / data.count
    if covariance.ndim == 2:
        covariance = covariance * scale * scale[:, None] + noise.diag()
        volume, trace = torch.linalg.slogdet(covariance).logabsdet, covariance.trace()
    else:
        variance = covariance * scale.square() + noise
        volume, trace = variance.log().sum(), variance.sum()
    return float(shift.square().sum() + trace - len(std) - volume) / 2


def _groups(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Batches on the CPU, small ones together: adding one sample to a covariance costs as much as adding many."""
    group = list[Tensor]()
    for batch in batches:
        group.append(batch.cpu())
        if sum(map(len, group)) * group[0][0].numel() >= GROUP * min(group[0][0].numel(), FULL_COVARIANCE_DIMS):
            yield torch.cat(group)
            group.clear()
    if group:
        yield torch.cat(group)
