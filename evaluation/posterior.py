"""How well samples represent a posterior: by the measurement, by a known truth, and by samples of the exact one.

The S samples of N posteriors are (N, S, *D). Their weights are equal, or `log_weights (N, S)`.

References:
    Talts et al. 2018, "Validating Bayesian Inference Algorithms with Simulation-Based Calibration", for ranks.
    Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures", for sliced distances.
"""

import math

import torch
from torch import Tensor

INTERVAL = 0.9  # of coverage


def residual(y: Tensor, predicted: Tensor, noise_std: float) -> Tensor:
    """How far samples are from their measurement, of each, (B,):  |y - A x|^2 / (m noise_std^2).

    The truth has 1 on average. Much less has fitted the noise, and much more violates the measurement. Where the noise
    is 0, it is the largest |y - A x|.

    Args:
        y: measurements, (B, *M).
        predicted: A x of the samples, (B, *M).
        noise_std: of the measurement's noise, in the units of y.
    """
    apart = (y - predicted).double().abs().flatten(1)
    if noise_std == 0:
        return apart.amax(1)
    return (apart / noise_std).square().mean(1)


def moments(samples: Tensor, log_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each posterior, (N, *D) in float64.

    The variance is divided by 1 - sum w^2, which is (S - 1) / S for equal weights: it is not biased. One sample has 0.
    """
    samples = samples.double()
    w = _weights(samples, log_weights)
    mean = (w * samples).sum(1)
    variance = (w * (samples - mean[:, None]).square()).sum(1)
    rest = (1 - w.square().sum(1)).clamp(min=0)
    return mean, torch.where(rest > 1e-12, variance / rest.clamp(min=1e-12), 0.0).sqrt()


def randomised_ranks(truth: Tensor, samples: Tensor, uniform: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """The rank of the truth among its samples, within [0, 1], (N, *D), with ties broken at random:

        u = (#{s < truth} + V (1 + #{s = truth})) / (S + 1)

    Where truth and samples are exchangeable, as for a right posterior, u is uniform for every S, and also for values
    with atoms as the background of MNIST. With unequal weights, S times the weights take the place of the counts, and
    u is uniform in the limit of many samples.

    Args:
        truth: what was measured, (N, *D).
        samples: (N, S, *D), stored as the truth is, so that ties are ties.
        uniform: the V, uniform numbers in [0, 1), like the truth.
        log_weights: of the samples, (N, S).
    """
    count = samples.shape[1]
    w = count * _weights(samples, log_weights)
    below = (w * (samples < truth[:, None])).sum(1)
    equal = (w * (samples == truth[:, None])).sum(1)
    return (below + uniform.double() * (1 + equal)) / (count + 1)


def coverage(ranks: Tensor, where: Tensor | None = None, interval: float = INTERVAL) -> Tensor:
    """The share of each item's values whose central interval holds the truth, (N,); that interval's mass is right.

    Items without a value in `where` have nan.

    Args:
        ranks: see `randomised_ranks`, (N, *D).
        where: booleans that broadcast to the ranks. True marks a value that counts, such as a hidden one.
        interval: its mass.
    """
    inside = (ranks - 0.5).abs() <= interval / 2
    counted = torch.ones_like(inside) if where is None else where.expand_as(inside)
    return (inside & counted).flatten(1).sum(1) / counted.flatten(1).sum(1).double()


def rank_histogram(ranks: Tensor, bins: int, where: Tensor | None = None) -> Tensor:
    """The shares of the ranks in equal bins, (bins,): all 1 / bins for a right posterior.

    A hump says that samples spread too far, and a bowl that they spread too little.
    """
    ranks = ranks if where is None else ranks[where.expand_as(ranks)]
    return torch.histc(ranks.double(), bins, 0.0, 1.0) / max(1, ranks.numel())


def sliced_wasserstein(
    samples: Tensor,
    reference: Tensor,
    log_weights: Tensor | None = None,
    *,
    directions: int = 128,
    seed: int = 0,
) -> float:
    """The sliced Wasserstein-2 distance of one set of samples (S, *D) to a reference, in its standard deviations.

        sqrt(mean over directions v of  W2(v x, v reference)^2 / Var(v reference))

    Exact samples, n of them, are about sqrt(3 / n) from many more (Gaussians of 1, 2 and 16 dimensions, n = 150, 600).

    Args:
        samples: (S, *D).
        reference: exact samples, (R, *D).
        log_weights: of the samples, (S,).
        directions: how many, drawn at random on the sphere.
        seed: of the directions.
    """
    x, r = samples.flatten(1).double(), reference.flatten(1).double()
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    v = (v / v.norm(dim=0)).to(x.device)
    square = _wasserstein(x @ v, r @ v, _weights(x[None], log_weights)[0, :, 0])
    return float((square / (r @ v).var(0, correction=0)).mean().sqrt())


def whitened_std(samples: Tensor, reference: Tensor, log_weights: Tensor | None = None) -> float:
    """The standard deviation of samples (S, *D) where the reference's is 1 in every direction.

    sqrt(trace(Cov(reference)^-1 Cov(samples)) / d)
    """
    x, r = samples.flatten(1).double(), reference.flatten(1).double()
    w = _weights(x[None], log_weights)[0, :, 0]
    apart = x - w @ x
    covariance = apart.T @ (w[:, None] * apart) / (1 - w.square().sum())
    exact = torch.cov(r.T).reshape(covariance.shape)
    return math.sqrt(float(torch.linalg.solve(exact, covariance).diagonal().mean()))


def mode_masses(responsibilities: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """The mass of samples in each of K modes, (K,), from p(mode | sample) or its logarithm's softmax, (S, K)."""
    w = _weights(responsibilities[None], log_weights)[0]
    return (w * responsibilities.double()).sum(0)


def total_variation(masses: Tensor, exact: Tensor) -> float:
    """Half of  sum |p - q|: the mass that is in wrong modes."""
    return float((masses.double() - exact.double()).abs().sum() / 2)


def _weights(samples: Tensor, log_weights: Tensor | None) -> Tensor:
    """Weights that sum to one for each posterior, in the dimensions of the samples, (N, S, 1, ...) in float64."""
    count, ones = samples.shape[1], (1,) * (samples.ndim - 2)
    if log_weights is None:
        return torch.full((1, count, *ones), 1 / count, dtype=torch.float64, device=samples.device)
    w = log_weights.double().reshape(-1, count).softmax(1)
    return w.reshape(-1, count, *ones)


def _wasserstein(x: Tensor, r: Tensor, weights: Tensor) -> Tensor:
    """The squared W2 of columns, (S, L) and (R, L) -> (L,), exact. Both quantile functions are steps."""
    x, order = x.sort(0)
    w = weights.expand(len(x))[order.T].T
    ends = w.cumsum(0)
    ends = ends / ends[-1:]
    other = torch.arange(1, len(r) + 1, dtype=x.dtype, device=x.device) / len(r)
    both = torch.cat([ends, other[:, None].expand(-1, x.shape[1])]).sort(0).values.clamp(max=1.0)
    lengths = both.diff(dim=0, prepend=torch.zeros_like(both[:1]))
    middles = both - lengths / 2
    i = torch.searchsorted(ends.T.contiguous(), middles.T.contiguous()).clamp(max=len(x) - 1).T
    j = torch.searchsorted(other, middles.contiguous()).clamp(max=len(r) - 1)
    return (lengths * (x.gather(0, i) - r.sort(0).values.gather(0, j)).square()).sum(0)
