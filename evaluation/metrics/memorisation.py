"""Tests for copies of training data among samples, beside held-out data."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, rankdata
from torch import Tensor

from scorefield.evaluation.metrics.neighbours import nearest


@dataclass(frozen=True)
class Memorisation:
    """Which samples are nearer to one training item than held-out data are, and whether all of them are.

    Args:
        indices: of the k nearest training items, (N, k), ascending in distance.
        distances: to them, (N, k), float64.
        ratios: of the distance to the nearest and to the k-th nearest, (N,).
        flagged: samples that look like copies, (N,), bool.
        threshold: of the ratio, below which a sample is flagged.
        share: of the samples that are flagged.
        false_share: the share of held-out items below the threshold, the false-alarm rate.
        authentic: `authenticity` of the samples.
        authentic_held_out: `authenticity` of the held-out items.
        z: of the test that samples are nearer to the training set than held-out items; negative where they are.
        p: the probability of a z as low as this or lower, if both are of one distribution.
    """

    indices: Tensor
    distances: Tensor
    ratios: Tensor
    flagged: Tensor
    threshold: float
    share: float
    false_share: float
    authentic: float
    authentic_held_out: float
    z: float
    p: float


def memorisation(samples: Tensor, training: Tensor, held_out: Tensor, rate: float = 0.01, k: int = 5) -> Memorisation:
    """Search samples for copies of training items, with held-out data as the measure of what is by chance.

    A copy is much nearer to its original than to the k-th nearest item: d_1 / d_k is small (Yoon et al. 2023). The
    threshold is a quantile of this ratio over held-out items, such that a sample of the same distribution is flagged
    with probability `rate` at most, over draws of both. A sample at distance 0 is always flagged. Where training
    items come in near-duplicates, take k above their number: a copy of them is near to all of them.

    z and p compare the distances to the nearest item with those of held-out items, by ranks (Mann and Whitney; the
    idea of Meehan et al. 2020, without their cells). A blurred sampler is nearer without any copies, so look at the
    flagged samples as well.

    Args:
        samples: features (N, d).
        training: features (M, d) of what the model was trained on.
        held_out: features (H, d) of data of the same distribution that it was not trained on.
        rate: of false alarms.
        k: the neighbour to compare the nearest with, at least 2.

    Raises:
        ValueError: unless all are finite features of one width, or for too few held-out items for this rate.
    """
    if k < 2:
        raise ValueError(f"expected k of at least 2, got {k}: the ratio compares two different neighbours")
    allowed = math.floor(rate * (len(held_out) + 1))
    if not 1 <= allowed <= len(held_out):
        raise ValueError(
            f"expected at least {math.ceil(1 / rate) - 1 if rate > 0 else 'some'} held-out items for a rate of "
            f"{rate:g}, got {len(held_out)}: give more, or a higher rate"
        )
    distances, indices = nearest(samples, training, k)
    theirs, their_indices = nearest(held_out, training, k)
    ratios, their_ratios = _ratios(distances), _ratios(theirs)
    threshold = float(their_ratios.sort().values[allowed - 1])
    flagged = (ratios < threshold) | (distances[:, 0] == 0)
    z = _mann_whitney(distances[:, 0], theirs[:, 0])
    return Memorisation(
        indices,
        distances,
        ratios,
        flagged,
        threshold,
        share=_mean(flagged),
        false_share=_mean((their_ratios < threshold) | (theirs[:, 0] == 0)),
        authentic=_authentic(distances[:, 0], indices[:, 0], training),
        authentic_held_out=_authentic(theirs[:, 0], their_indices[:, 0], training),
        z=z,
        p=float(norm.cdf(z)),
    )


def authenticity(samples: Tensor, training: Tensor) -> float:
    """The share of samples that are no copies (Alaa et al. 2022, sec. 3.3).

    A sample is authentic if its nearest training item is nearer to another training item than to the sample. New
    draws of the training distribution stay far below 1: compare with held-out data.

    Args:
        samples: features (N, d).
        training: features (M, d), M at least 2.

    Raises:
        ValueError: unless both are finite features of one width, or for less than two training items.
    """
    distances, indices = nearest(samples, training)
    return _authentic(distances[:, 0], indices[:, 0], training)


def _authentic(distances: Tensor, indices: Tensor, training: Tensor) -> float:
    items, of_sample = (torch.from_numpy(each) for each in np.unique(indices.numpy(), return_inverse=True))
    others = nearest(training[items], training, 2)[0][:, 1]  # the first is the item itself, or a duplicate
    return _mean(others[of_sample] < distances)


def _ratios(distances: Tensor) -> Tensor:
    """d_1 / d_k; 0 where both are 0."""
    return torch.where(distances[:, 0] == 0, 0.0, distances[:, 0] / distances[:, -1])


def _mann_whitney(x: Tensor, y: Tensor) -> float:
    """The z value of the Mann-Whitney test, with mid-ranks and their correction: negative where x is the smaller."""
    n, m = len(x), len(y)
    ranks = rankdata(np.concatenate([x.numpy(), y.numpy()]))
    _, ties = np.unique(ranks, return_counts=True)
    above = float(ranks[:n].sum()) - n * (n + 1) / 2 - n * m / 2
    variance = n * m / 12 * (n + m + 1 - float((ties**3 - ties).sum()) / ((n + m) * (n + m - 1)))
    return above / math.sqrt(variance) if variance > 0 else 0.0


def _mean(of: Tensor) -> float:
    return float(of.double().mean())
