"""The Frechet distance between two sets of features, as Gaussians."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scorefield.evaluation.metrics.moments import Moments
from scorefield.evaluation.metrics.rows import float64


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """The squared Frechet distance between Gaussians with the moments of two sets of features (Heusel et al. 2017).

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),  in float64, in the square of the features' unit. It is
    biased upwards for few samples: compare numbers of equal counts, and name the count beside them.

    Args:
        a: features (N, d), or their moments.
        b: features (M, d), or their moments.

    Raises:
        ValueError: unless both are finite, of one width, and of at least two samples.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        x, y = (each.numpy() for each in float64(a, b, least=2))
        if max(len(x), len(y)) < x.shape[1]:
            return _from_features(x, y)
    first, second = (of if isinstance(of, Moments) else Moments.of(float64(of, least=2)[0]) for of in (a, b))
    if len(first.mean) != len(second.mean):
        raise ValueError(
            f"expected moments of one width, got {len(first.mean)} and {len(second.mean)}: take both with the same "
            "features"
        )
    return _from_moments(first, second)


def _from_features(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The distance of features (N, d) and (M, d), N and M below d, without a matrix (d, d).

    C_a C_b = X^T X Y^T Y / ((N - 1)(M - 1)) for centred features. So the roots of its eigenvalues, whose sum is the
    trace of its root, are the singular values of X Y^T / sqrt((N - 1)(M - 1)).
    """
    shift = x.mean(0) - y.mean(0)
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + np.square(x).sum() + np.square(y).sum() - 2 * shared))


def _from_moments(a: Moments, b: Moments) -> float:
    """The distance of moments: the eigenvalues of C_a C_b are those of R^T C_b R, which is symmetric, if C_a = R R^T.

    The set of fewer samples gives R: where both covariances lack rank, no eigenvalue is then a rounded 0, whose root
    would be an error of 1e-8.
    """
    if a.count is None or (b.count is not None and b.count < a.count):
        a, b = b, a
    shift, spread = a.mean - b.mean, np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(shift @ shift + spread - 2 * trace_of_root(b.through(root(a)).covariance)))


def root(moments: Moments) -> NDArray[np.float64]:
    """R (d, r) with covariance R R^T, where r is the rank of the covariance."""
    values, vectors = np.linalg.eigh(moments.covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(0.0, values[-1])
    scaled: NDArray[np.float64] = vectors[:, kept] * np.sqrt(values[kept])
    return scaled


def trace_of_root(symmetric: NDArray[np.float64]) -> float:
    """Tr A^(1/2) of a symmetric matrix A with no negative eigenvalue."""
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(symmetric), 0)).sum())
