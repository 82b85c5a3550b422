"""Metrics of nearest neighbours among features: precision and recall, density and coverage."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.evaluation.metrics.estimate import Estimate
from scorefield.evaluation.metrics.rows import ENTRIES, blocks, float64, squared_distances

SPARE = 4  # candidates beyond k, whose order the quick distances may have wrong
ROUNDING = 1e-11  # of the quick distances, beside |x|^2 + |y|^2


class PrecisionRecall(NamedTuple):
    """Shares in 0 .. 1, each with a standard error that is at most twice too large."""

    precision: Estimate
    recall: Estimate


class DensityCoverage(NamedTuple):
    """A mean count, whose error is not known, and a share in 0 .. 1, with an error that is at most twice too large."""

    density: Estimate
    coverage: Estimate


def nearest(queries: Tensor, among: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a set to each query: distances (N, k) in float64, ascending, and indices (N, k).

    The distance of equal rows is 0 exactly.

    Args:
        queries: features (N, d).
        among: features (M, d).
        k: how many.

    Raises:
        ValueError: unless both are finite features of one width, `among` of at least k samples.
    """
    queries, among = float64(queries, among)
    squares, indices = _nearest(queries, among, _at_most(k, len(among)), itself=True)
    return squares.sqrt(), indices


def nearest_others(features: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """As `nearest`, of each row among the other rows of the same set."""
    (features,) = float64(features)
    squares, indices = _nearest(features, features, _at_most(k, len(features) - 1), itself=False)
    return squares.sqrt(), indices


def precision_recall(fake: Tensor, real: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1-3).

    Precision is the share of samples that lie in the ball of a real one, recall the share of real ones that lie in
    the ball of a sample: |x - y| <= r(y), with r the distance of y to its k-th neighbour other than itself. Two sets
    of one distribution do not have 1: compare with two halves of the real set.

    Args:
        fake: features (N, d) of samples.
        real: features (M, d) of data.
        k: the neighbour that gives the radius.

    Raises:
        ValueError: unless both are finite features of one width, of more than k samples.
    """
    fake, real = float64(fake, real)
    of_fake, of_real = (_radii(each, k) for each in (fake, real))
    inside = _inside(fake, real, of_real, closed=True)
    covered = _inside(real, fake, of_fake, closed=True)
    return PrecisionRecall(_share(inside.rows > 0, inside.only_in), _share(covered.rows > 0, covered.only_in))


def density_coverage(fake: Tensor, real: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, eq. 3 and 4).

    Density is the mean over samples of the count of real balls with the sample inside, divided by k. Coverage is the
    share of real balls with a sample inside: |x - y| < r(y). For two sets of one distribution the density is 1 in
    expectation, and the coverage `expected_coverage`. Arguments and errors as of `precision_recall`.
    """
    fake, real = float64(fake, real)
    inside = _inside(fake, real, _radii(real, k), closed=False)
    return DensityCoverage(Estimate(float(inside.rows.mean()) / k), _share(inside.balls > 0, inside.alone_in))


def expected_coverage(n_real: int, n_fake: int, k: int) -> float:
    """The expectation of the coverage for two sets of one distribution (Naeem et al. 2020, lemma 2), of any width.

    1 - prod_(i = 1 .. k) (N - i) / (N + M - i),  for N real samples and M others.
    """
    return 1 - math.prod((n_real - i) / (n_real + n_fake - i) for i in range(1, k + 1))


class _Inside(NamedTuple):
    """How many balls each row is in and is alone in, and how many rows each ball has, and has for itself alone."""

    rows: Tensor
    alone_in: Tensor
    balls: Tensor
    only_in: Tensor


def _inside(rows: Tensor, centres: Tensor, radii: Tensor, closed: bool) -> _Inside:
    """Which rows (N, d) are in the balls around centres (M, d) of squared radii (M,), with or without the border."""
    n, m = len(rows), len(centres)
    of_row, of_ball, sum_of_ball, sum_of_row = (
        rows.new_zeros(n),
        rows.new_zeros(m),
        rows.new_zeros(m),
        rows.new_zeros(n),
    )
    row_numbers, ball_numbers = (torch.arange(count, dtype=torch.float64) for count in (n, m))
    scale = ROUNDING * ((rows * rows).sum(1).max() + (centres * centres).sum(1).max())
    for part in blocks(n, m):
        squares = squared_distances(rows[part], centres)
        _settle(squares, rows[part], centres, (squares - radii).abs_() <= scale)
        inside = (squares <= radii if closed else squares < radii).double()
        of_row[part], of_ball = inside.sum(1), of_ball + inside.sum(0)
        sum_of_row[part], sum_of_ball = inside @ ball_numbers, sum_of_ball + row_numbers[part] @ inside
    alone = sum_of_ball[of_ball == 1].long().bincount(minlength=n)  # a sum of one number is that number
    only = sum_of_row[of_row == 1].long().bincount(minlength=m)
    return _Inside(of_row, alone.double(), of_ball, only.double())


def _settle(squares: Tensor, rows: Tensor, centres: Tensor, near: Tensor) -> None:
    """Take these of the quick squared distances again from differences, as the radii were: a tie is then a tie."""
    i, j = near.nonzero(as_tuple=True)
    for part in blocks(len(i), rows.shape[1]):
        squares[i[part], j[part]] = (rows[i[part]] - centres[j[part]]).square().sum(1)


def _radii(features: Tensor, k: int) -> Tensor:
    """The squared distance (N,) of each row to its k-th neighbour other than itself."""
    return _nearest(features, features, _at_most(k, len(features) - 1), itself=False)[0][:, -1]


def _nearest(queries: Tensor, among: Tensor, k: int, itself: bool) -> tuple[Tensor, Tensor]:
    """Squared distances (N, k) and indices: candidates by quick distances, and their order by differences."""
    candidates = min(k + SPARE, len(among) - (not itself))
    squares, indices = queries.new_empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    for part in blocks(len(queries), len(among) + candidates * queries.shape[1], 2 * ENTRIES):
        quick = squared_distances(queries[part], among)
        if not itself:
            quick.diagonal(part.start).fill_(math.inf)
        found = quick.topk(candidates, largest=False).indices.sort(1).values
        exact = (queries[part].repeat_interleave(candidates, 0) - among[found.flatten()]).square().sum(1)
        ordered = exact.reshape(found.shape).sort(dim=1, stable=True)
        squares[part], indices[part] = ordered.values[:, :k], found.gather(1, ordered.indices)[:, :k]
    return squares, indices


def _at_most(k: int, available: int) -> int:
    if not 1 <= k <= available:
        raise ValueError(f"expected a k-th neighbour, k of 1 .. {available}, got k = {k}: give more samples or less k")
    return k


def _share(of: Tensor, others: Tensor) -> Estimate:
    """The share of a set, and its error: `others` has what each item of the other set adds to the number.

    The variance is the binomial one and the jackknife's over the other set, for radii that do not change. On normals
    of 8 and 32 dimensions the error is 1.2 to 1.9 times the spread over draws; the binomial one alone is too small,
    0.7 to 0.9 of it.
    """
    p = float(of.double().mean())
    variance = p * (1 - p) / len(of) + len(others) * float(others.var(correction=0)) / len(of) ** 2
    return Estimate(p, math.sqrt(variance))
