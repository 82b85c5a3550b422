"""Distances of kernels between two sets of features: the maximum mean discrepancy, squared."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scorefield.evaluation.metrics.estimate import Estimate
from scorefield.evaluation.metrics.rows import blocks, float64, squared_distances

Kernel = Callable[[Tensor, Tensor], Tensor]


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """K = (x.y / d + 1)^3 (Binkowski et al. 2018), (N, d) and (M, d) to (N, M)."""
    product = (x @ y.T).div_(x.shape[1]).add_(1)
    return product.square().mul_(product)


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """K = exp(-|x - y|^2 / (2 sigma^2)) of sigma = 10 (Jayasumana et al. 2024), (N, d) and (M, d) to (N, M)."""
    return squared_distances(x, y).div_(-2 * 10.0**2).exp_()


def kernel_distance(a: Tensor, b: Tensor) -> Estimate:
    """KID (Binkowski et al. 2018): the squared maximum mean discrepancy of k = (x.y / d + 1)^3, without bias.

    MMD^2 = mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over all pairs of different samples. It may be negative
    where both sets are of one distribution. See `discrepancy` for the standard error.

    Args:
        a: features (N, d).
        b: features (M, d).

    Raises:
        ValueError: unless both are finite features of one width, of at least three samples.
    """
    return discrepancy(cubic, a, b)


def clip_distance(a: Tensor, b: Tensor) -> Estimate:
    """CMMD (Jayasumana et al. 2024): 1000 MMD^2 of a Gaussian kernel, sigma = 10, of features of unit norm.

    As published it counts the pairs of a sample with itself, so it is biased upwards by about 1000 (1/N + 1/M)
    times (1 - mean k). Compare numbers of equal counts. Arguments and errors as of `kernel_distance`.
    """
    value, standard_error = discrepancy(gaussian, a, b, biased=True)
    return Estimate(1000 * value, 1000 * standard_error)


def kernel_distance_of_subsets(
    a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Estimate:
    """KID as torch-fidelity takes it: the mean over subsets of both sets, drawn without replacement.

    The second number is the standard deviation over subsets, as published. It is no standard error: subsets share
    samples. `kernel_distance` takes all pairs once, and has its standard error.

    Args:
        a: features (N, d).
        b: features (M, d).
        subsets: how many are drawn.
        size: of a subset.
        seed: of the draws.

    Raises:
        ValueError: unless both are finite features of one width, of at least `size` samples.
    """
    a, b = float64(a, b, least=size)
    random, found = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = a[torch.from_numpy(random.choice(len(a), size, replace=False))]
        y = b[torch.from_numpy(random.choice(len(b), size, replace=False))]
        found.append(_value(_sums(cubic, x), _sums(cubic, y), _sums(cubic, x, y), biased=False))
    return Estimate(float(np.mean(found)), float(np.std(found)))


def discrepancy(kernel: Kernel, a: Tensor, b: Tensor, biased: bool = False) -> Estimate:
    """The squared maximum mean discrepancy of a kernel, over all pairs, with its standard error.

    The variance is the jackknife's, over samples of both sets. It holds the pairs' own part of the variance,
    2 v_aa / N^2 + 4 v_ab / (N M) + 2 v_bb / M^2 with v the mean square of the centred kernel, twice (Efron and Stein
    1981): one of the two is taken off again. Near 0 distance nothing else is left.

    Args:
        kernel: (N, d) and (M, d) to (N, M).
        a: features (N, d).
        b: features (M, d).
        biased: count the pairs of a sample with itself.

    Raises:
        ValueError: unless both are finite features of one width, of at least three samples.
    """
    a, b = float64(a, b, least=3)
    aa, bb, ab = _sums(kernel, a), _sums(kernel, b), _sums(kernel, a, b)
    n, m = len(a), len(b)
    without = _without_one(aa, bb, ab)
    jackknife = sum((len(each) - 1) * float(each.var(correction=0)) for each in without)
    pairs = 2 * aa.centred / n**2 + 4 * ab.centred / (n * m) + 2 * bb.centred / m**2
    return Estimate(_value(aa, bb, ab, biased), math.sqrt(max(jackknife, 2 * pairs) - pairs))


def kernel_difference(a: Tensor, other: Tensor, reference: Tensor) -> Estimate:
    """KID of samples less KID of other samples against the same reference, with the error of this difference.

    Row i of both sets was drawn from the same noise, as by two solvers. So most of their errors is common, and drops
    out: the jackknife leaves out row i of both, or one of the reference.

    Args:
        a: features (N, d).
        other: features (N, d).
        reference: features (M, d).

    Raises:
        ValueError: unless all are finite features of one width, N and M at least three, N equal for both.
    """
    a, other, reference = float64(a, other, reference, least=3)
    if len(a) != len(other):
        raise ValueError(f"expected two sets of as many samples, got {len(a)} and {len(other)}: draw them by one seed")
    bb = _sums(cubic, reference)
    found = []
    for each in (a, other):
        aa, ab = _sums(cubic, each), _sums(cubic, each, reference)
        found.append((_value(aa, bb, ab, biased=False), _without_one(aa, bb, ab)))
    (value, first), (base, second) = found
    apart = [x - y for x, y in zip(first, second, strict=True)]
    return Estimate(value - base, math.sqrt(sum((len(x) - 1) * float(x.var(correction=0)) for x in apart)))


def _without_one(aa: "_Sums", bb: "_Sums", ab: "_Sums") -> tuple[Tensor, Tensor]:
    """What of the unbiased discrepancy depends on a sample, without each sample of a (N,), and of b (M,)."""
    n, m = len(aa.rows), len(bb.rows)
    return (
        (aa.total - 2 * aa.rows) / ((n - 1) * (n - 2)) - 2 * (ab.total - ab.rows) / ((n - 1) * m),
        (bb.total - 2 * bb.rows) / ((m - 1) * (m - 2)) - 2 * (ab.total - ab.columns) / ((m - 1) * n),
    )


class _Sums(NamedTuple):
    """Sums of a kernel over pairs: of each row, of each column, of all, of the squares; of the diagonal left out."""

    rows: Tensor
    columns: Tensor
    squares: float
    pairs: int
    diagonal: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())

    @property
    def centred(self) -> float:
        """The mean square of the kernel without its means over rows and columns."""
        mean = self.total / self.pairs
        rows, columns = (each * len(each) / self.pairs for each in (self.rows, self.columns))
        spread = self.squares / self.pairs - float(rows.square().mean() + columns.square().mean()) + mean**2
        return max(0.0, spread)


def _sums(kernel: Kernel, a: Tensor, b: Tensor | None = None) -> _Sums:
    """Sums over the pairs of a with b, or over the pairs of different samples of a."""
    others = a if b is None else b
    rows, columns = a.new_zeros(len(a)), a.new_zeros(len(others))
    squares = diagonal = 0.0
    for part in blocks(len(a), len(others)):
        if b is not None:
            k = kernel(a[part], b)
            rows[part], columns, squares = k.sum(1), columns + k.sum(0), squares + float(k.square().sum())
            continue
        k = kernel(a[part], a[part.start :])  # the rest is its mirror image
        diagonal += float(k.diagonal().sum())
        k.fill_diagonal_(0)
        own = k.shape[0]
        rows[part] += k.sum(1)
        rows[part.stop :] += k[:, own:].sum(0)
        squares += float(k[:, :own].square().sum()) + 2 * float(k[:, own:].square().sum())
    if b is None:
        return _Sums(rows, rows, squares, len(a) * (len(a) - 1), diagonal)
    return _Sums(rows, columns, squares, len(a) * len(b), 0.0)


def _value(aa: _Sums, bb: _Sums, ab: _Sums, biased: bool) -> float:
    def mean(of: _Sums) -> float:
        return (of.total + of.diagonal) / len(of.rows) ** 2 if biased else of.total / of.pairs

    return mean(aa) + mean(bb) - 2 * ab.total / ab.pairs
