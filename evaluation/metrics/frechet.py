"""The Frechet distance between two sets of features, as Gaussians."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Frechet distance between Gaussians with the moments of two sets of features (Heusel et al. 2017).

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),  in float64, in the square of the features' unit. It is
    biased upwards for few samples: compare numbers of equal counts, and name the count beside them.

    Args:
        a: features (N, d).
        b: features (M, d).

    Raises:
        ValueError: unless both are finite features of one width, of at least two samples.
    """
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != b.shape[1]:
            raise ValueError(
                f"expected features (N, d) of one width, N at least 2, got {tuple(a.shape)} and {tuple(b.shape)}: give "
                "a row for each sample"
            )
        if not bool(features.isfinite().all()):
            raise ValueError("expected finite features, got NaN or infinity: look at the samples")
    return frechet_of_moments(moments(a), moments(b))


def moments(features: Tensor) -> Moments:
    """The mean (d,) and the covariance (d, d), divided by N - 1, of features (N, d) in float64."""
    x = features.detach().double().cpu().numpy()
    return x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """The squared Frechet distance between two Gaussians of these means (d,) and covariances (d, d).

    tr (C_a C_b)^(1/2) is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric. So
    nothing becomes complex, also where a covariance has no full rank.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared
    return max(0.0, float(distance)) if math.isfinite(distance) else math.nan
