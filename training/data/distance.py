"""The largest distance between two items of a data set."""

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 512  # items that are compared with another block at once
ENTRIES = 1 << 26  # most entries of a block, which limits memory
WORK = 2e12  # multiplications, about a minute on a core; then the largest distance so far is a lower bound


def largest_distance(x: NDArray[Any], work: float = WORK) -> tuple[float, bool]:
    """The largest |x_i - x_j| of the items of x (N, *D), and whether it is exact or, after `work`, a lower bound.

    Most pairs are never compared. |x_i - x_j| <= r_i + r_j, with r the distance to the mean. The pairs with the largest
    sums come first, and the search ends where the sums fall below the largest distance so far.
    """
    parts = in_blocks(x, BLOCK)
    mean = sum(_flat(x[part]).sum(0, dtype=np.float64) for part in parts) / len(x)
    centre = mean.astype(np.float32)
    radius = np.concatenate([np.sqrt(np.square(_flat(x[part]) - centre).sum(1, dtype=np.float64)) for part in parts])
    order = np.argsort(-radius, kind="stable")
    blocks = [order[part] for part in parts]
    largest, best, done = 0.0, (0, 0), 0
    # The largest bounds first: once one is too small, all that follow are.
    bounds = [radius[block[0]] for block in blocks]
    pairs = itertools.combinations_with_replacement(range(len(blocks)), 2)
    for i, j in sorted(pairs, key=lambda ij: -bounds[ij[0]] - bounds[ij[1]]):
        if bounds[i] + bounds[j] <= largest * (1 + 1e-6):
            break
        if done > work:
            return _exactly(x, best), False
        a, b = (_flat(x[np.sort(blocks[k])]) - centre for k in (i, j))
        squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
        place = np.unravel_index(int(squares.argmax()), squares.shape)
        done += squares.size * a.shape[1]
        if squares[place] > largest**2:
            best = int(np.sort(blocks[i])[place[0]]), int(np.sort(blocks[j])[place[1]])
            largest = float(np.sqrt(squares[place]))
    return _exactly(x, best), True


def in_blocks(x: NDArray[Any], most: int) -> list[slice]:
    """The items of x (N, *D) in blocks of at most `most`, fewer if these have more than `ENTRIES` entries."""
    size = max(1, min(most, ENTRIES // max(1, math.prod(x.shape[1:]))))
    return [slice(first, first + size) for first in range(0, len(x), size)]


def _exactly(x: NDArray[Any], pair: tuple[int, int]) -> float:
    a, b = (np.asarray(x[i : i + 1]).astype(np.float64) for i in pair)
    return float(np.sqrt(np.square(a - b).sum()))


def _flat(x: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(x).reshape(len(x), -1).astype(np.float32)
