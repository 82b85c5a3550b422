"""Points in the plane from distributions that a picture shows."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split

Points = NDArray[np.float64]


def _polar(radius: Points | float, angle: Points) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _moons(u: Points) -> Points:
    """Two interleaved half circles of radius 1."""
    angle = 2 * math.pi * (u % 0.5)
    upper = _polar(1.0, angle)
    return np.where((u < 0.5)[:, None], upper, np.array([1.0, 0.5]) - upper)


def _circles(u: Points) -> Points:
    """Two concentric circles, the inner of half the radius."""
    return _polar(np.where(u < 0.5, 1.0, 0.5), 4 * math.pi * u)


def _swissroll(u: Points) -> Points:
    """A spiral of one and a half turns."""
    angle = 1.5 * math.pi * (1 + 2 * u)
    return _polar(angle, angle)


CURVES: dict[str, Callable[[Points], Points]] = {"moons": _moons, "circles": _circles, "swissroll": _swissroll}
NAMES = (*CURVES, "checkerboard", "eight_gaussians")
WIDTH = 0.05  # standard deviation around a curve, in units of the data's
SPREAD = 0.1  # standard deviation of each of the eight Gaussians


def toy(kind: str, split: Split = "train", n: int = 10_000) -> Dataset:
    """`n` points (2,), float32, of mean 0 and variance 1 (over both coordinates), the same at every call.

    - "moons", "circles", "swissroll": uniform along a curve, with Gaussian noise of 0.05.
    - "checkerboard": uniform on the eight fields of one colour of a 4 x 4 board, |x| < sqrt(3).
    - "eight_gaussians": equal parts of standard deviation 0.1 on a circle of radius sqrt(1.98).

    The two splits are different draws from the same distribution.

    Raises:
        ValueError: for an unknown kind, or `n` below 1.
    """
    check_split(split)
    if kind not in NAMES:
        raise ValueError(f"expected a toy named {', '.join(NAMES)}, got {kind!r}: choose one of these")
    if n < 1:
        raise ValueError(f"expected at least one point, got n = {n}: give a larger n")
    # RandomState, whose stream NumPy has frozen: the same points, and data hash, under every version.
    random = np.random.RandomState([NAMES.index(kind), split == "test"])
    if kind == "checkerboard":
        x = _checkerboard(n, random)
    elif kind == "eight_gaussians":
        x = _eight_gaussians(n, random)
    else:
        x = _around(CURVES[kind], n, random)
    return Dataset(kind, split, x.astype(np.float32), levels=None)


def _around(curve: Callable[[Points], Points], n: int, random: np.random.RandomState) -> Points:
    """Points around a curve, scaled by the curve's own moments, which both splits share."""
    grid = curve((np.arange(20_000) + 0.5) / 20_000)
    scale = math.sqrt(grid.var(axis=0).mean() / (1 - WIDTH**2))
    x: Points = (curve(random.uniform(size=n)) - grid.mean(axis=0)) / scale + WIDTH * random.normal(size=(n, 2))
    return x


def _checkerboard(n: int, random: np.random.RandomState) -> Points:
    column, pair = random.randint(4, size=n), random.randint(2, size=n)
    field = np.stack([column, 2 * pair + column % 2], axis=1)
    x: Points = (field + random.uniform(size=(n, 2)) - 2) * (math.sqrt(3) / 2)
    return x


def _eight_gaussians(n: int, random: np.random.RandomState) -> Points:
    angle: Points = np.array(random.randint(8, size=n) * (math.pi / 4), np.float64)
    return _polar(math.sqrt(2 * (1 - SPREAD**2)), angle) + SPREAD * random.normal(size=(n, 2))
