"""Anomaly scores: how far samples are from those of training. A larger score is more anomalous.

References:
    Nalisnick, Matsukawa, Teh and Lakshminarayanan 2019, "Detecting out-of-distribution inputs to deep generative models
    using typicality".
    Mahmood, Oliva and Styner 2021, "Multiscale score matching for out-of-distribution detection" (MSMA).
    Heng, Thiery and Soh 2024, "Out-of-distribution detection with a single unconditional diffusion model" (DiffPath).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

SMALLEST = 1e-12  # error of a level, and variance of a feature relative to the largest, that is not taken as zero

Values = NDArray[np.float64]


class Auroc(NamedTuple):
    """An area under the ROC curve with its standard error, which is nan where a side has one score."""

    value: float
    standard_error: float


def auroc(normal: Values, anomalous: Values) -> Auroc:
    """The probability that an anomalous score is above a normal one, where equal scores count half.

        AUROC = (sum of the anomalous ranks - m (m + 1) / 2) / (m n)

    Ranks are among all scores, and equal ones have their mean rank. The standard error is that of DeLong, DeLong and
    Clarke-Pearson 1988: each side's scores are compared with all of the other.

    Args:
        normal: scores, (n,).
        anomalous: scores, (m,).

    Raises:
        ValueError: if a side is empty, or a score is not finite.
    """
    normal, anomalous = (_checked(side, 1) for side in (normal, anomalous))
    n, m = len(normal), len(anomalous)
    rank = rankdata(np.concatenate([normal, anomalous]))
    value = (rank[n:].sum() - m * (m + 1) / 2) / (m * n)
    if min(m, n) < 2:
        return Auroc(float(value), float("nan"))
    below = (rank[n:] - rankdata(anomalous)) / n  # the share of normal scores below each anomalous one
    above = 1 - (rank[:n] - rankdata(normal)) / m
    return Auroc(float(value), float(np.sqrt(below.var(ddof=1) / m + above.var(ddof=1) / n)))


def typicality(bits: Values, training: Values) -> Values:
    """|bits - E bits| with the mean over training samples, (N,): too likely is anomalous as well.

    Nalisnick et al. 2019, for a single sample.
    """
    distance: Values = np.abs(_checked(bits, 1) - _checked(training, 1).mean())
    return distance


def log_errors(errors: Values, bands: int) -> Values:
    """Log of the mean error in each of `bands` groups of consecutive noise levels, (N, K) -> (N, bands).

    The errors are |eps_hat - eps|^2 / D at K levels that rise or fall. Groups differ by at most one level.

    Raises:
        ValueError: for fewer levels than bands.
    """
    errors = _checked(errors, 2)
    levels = errors.shape[1]
    if not 1 <= bands <= levels:
        raise ValueError(f"expected 1 to {levels} bands for errors at {levels} levels, got {bands}: take fewer")
    means = [part.mean(1) for part in np.array_split(errors, bands, axis=1)]
    logs: Values = np.log(np.maximum(np.stack(means, 1), SMALLEST))
    return logs


@dataclass(frozen=True)
class GaussianFit:
    """The Gaussian with the mean and the covariance of training features.

    Called with features (N, F) it gives squared Mahalanobis distances, (N,). Those of the Gaussian's own samples are
    chi-squared, with the mean F.

    Args:
        mean: (F,).
        whitening: W with W^T W the inverse of the covariance, (F, F).
    """

    mean: Values
    whitening: Values

    @classmethod
    def of(cls, features: Values) -> "GaussianFit":
        """Of training features, (N, F).

        Raises:
            ValueError: unless there are more samples than features, all finite.
        """
        features = _checked(features, 2)
        count, dims = features.shape
        if count <= dims:
            raise ValueError(f"expected more than {dims} training samples for {dims} features, got {count}: take more")
        mean = features.mean(0)
        values, vectors = np.linalg.eigh((features - mean).T @ (features - mean) / count)
        floor = SMALLEST * max(float(values[-1]), SMALLEST)
        return cls(mean, (vectors / np.sqrt(np.maximum(values, floor))).T)

    def __call__(self, features: Values) -> Values:
        white = (_checked(features, 2) - self.mean) @ self.whitening.T
        squares: Values = np.square(white).sum(1)
        return squares

    def left_out(self, features: Values) -> Values:
        """Of the training features themselves, (N, F): each one's distance from the fit of the others, (N,).

            d_i^2 / (1 - d_i^2 / (N - 1)) N / (N - 1),   d_i^2 the distance from the fit of all

        It is as large as that of a new sample, where `__call__` is smaller: the fit has seen each sample.

        Raises:
            ValueError: unless the others alone are more samples than features.
        """
        others, distance = len(features) - 1, self(features)
        if others <= len(self.mean):
            raise ValueError(
                f"expected at least {len(self.mean) + 2} training samples to leave one out of {len(self.mean)} "
                f"features, got {len(features)}: take more"
            )
        apart: Values = distance / np.maximum(1 - distance / others, SMALLEST) * (1 + 1 / others)
        return apart


def _checked(values: Values, axes: int) -> Values:
    values = np.asarray(values, np.float64)
    if values.ndim != axes or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"expected finite values with {axes} axes, at least one, got {values.shape} with "
            f"{int((~np.isfinite(values)).sum())} that are not finite: look for overflow in the model"
        )
    return values
