"""Mean and covariance of features, in float64, of blocks that merge."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scorefield.evaluation.metrics.rows import float64

BLOCK = 1024  # rows


@dataclass(frozen=True)
class Moments:
    """The moments of features, or of statistics that others made.

    Args:
        count: of the samples N; None where it is not known.
        mean: (d,).
        scatter: the sum of (x - mean)(x - mean)^T, (d, d); the covariance itself where the count is not known.

    Raises:
        ValueError: unless mean and scatter are finite and of one width.
    """

    count: int | None
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.scatter.shape != (len(self.mean), len(self.mean)):
            raise ValueError(
                f"expected a mean (d,) and a covariance (d, d), got {self.mean.shape} and {self.scatter.shape}: give "
                "both of the same features"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scatter).all()):
            raise ValueError("expected finite moments, got NaN or infinity: look at the samples")

    @classmethod
    def of(cls, features: Tensor, block: int = BLOCK) -> "Moments":
        """The moments of features (N, d), in blocks of `block` rows that are merged in order.

        So moments of parts whose borders are borders of blocks, added block by block, have the same bits.
        """
        x = float64(features)[0].numpy()
        parts = (cls._of_block(x[start : start + block]) for start in range(0, len(x), block))
        return functools.reduce(Moments.__add__, parts)

    @classmethod
    def _of_block(cls, x: NDArray[np.float64]) -> "Moments":
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    @classmethod
    def given(cls, mean: ArrayLike, covariance: ArrayLike, count: int | None = None) -> "Moments":
        """Statistics that others made: a covariance divided by N - 1, of `count` samples or of a count not known."""
        scale = 1 if count is None else count - 1
        return cls(count, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * scale)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(d, d), divided by N - 1.

        Raises:
            ValueError: for one sample.
        """
        if self.count is None:
            return self.scatter
        if self.count < 2:
            raise ValueError(f"expected at least 2 samples for a covariance, got {self.count}: give more")
        return self.scatter / (self.count - 1)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub and LeVeque 1979, eq. 2.1).

        Raises:
            ValueError: where a count is not known, or the widths differ.
        """
        self.check_width(other)
        n, m = self.counted, other.counted
        shift = other.mean - self.mean
        return Moments(
            n + m,
            self.mean + shift * (m / (n + m)),
            self.scatter + other.scatter + np.outer(shift, shift) * (n * m / (n + m)),
        )

    def __sub__(self, part: "Moments") -> "Moments":
        """The moments of the samples without those of a part of them."""
        n, m = self.counted, part.counted
        shift = part.mean - self.mean
        return Moments(
            n - m,
            self.mean - shift * (m / (n - m)),
            self.scatter - part.scatter - np.outer(shift, shift) * (n * m / (n - m)),
        )

    def through(self, matrix: NDArray[np.float64]) -> "Moments":
        """The moments of features @ matrix, for a matrix (d, r)."""
        return Moments(self.count, self.mean @ matrix, matrix.T @ self.scatter @ matrix)

    def check_width(self, other: "Moments") -> None:
        """Refuse moments of other features.

        Raises:
            ValueError: unless both are of as many features.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"expected moments of one width, got {len(self.mean)} and {len(other.mean)}: take both with the same "
                "features"
            )

    @property
    def counted(self) -> int:
        """The count.

        Raises:
            ValueError: where it is not known.
        """
        if self.count is None:
            raise ValueError("expected moments with a count, got statistics without: give the number of samples")
        return self.count

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, Moments)
            and self.count == other.count
            and np.array_equal(self.mean, other.mean)
            and np.array_equal(self.scatter, other.scatter)
        )

    __hash__ = None  # type: ignore[assignment]
