"""Kernel distances, against sums over all pairs written out, and over draws."""

import math

import numpy as np
import pytest
import torch
from image_files import refused
from seeded import seeded_normal

from scorefield.evaluation.metrics import kernel, rows
from scorefield.evaluation.metrics.kernel import (
    clip_distance,
    kernel_difference,
    kernel_distance,
    kernel_distance_of_subsets,
)


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def plain(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased distance, all pairs at once."""
    n, m = len(a), len(b)
    aa, bb = cubic(a, a), cubic(b, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * cubic(a, b).mean())


@pytest.mark.parametrize("entries", [1 << 25, 60])
def test_all_pairs_in_blocks(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    a, b = seeded_normal("a", (23, 6)), 1.5 * seeded_normal("b", (17, 6)) + 0.3
    monkeypatch.setattr(rows.blocks, "__defaults__", (entries,))
    found = kernel_distance(a, b)
    x, y = a.numpy(), b.numpy()
    assert found.value == pytest.approx(plain(x, y), rel=1e-12)
    variance = sum(
        (len(each) - 1) * np.var([plain(*pair) for pair in pairs])
        for each, pairs in (
            (x, [(np.delete(x, i, 0), y) for i in range(len(x))]),
            (y, [(x, np.delete(y, j, 0)) for j in range(len(y))]),
        )
    )

    def of_pairs(p: np.ndarray, q: np.ndarray) -> float:
        """The mean square of the kernel without its means of rows and columns, over pairs of different samples."""
        k = np.ma.array(cubic(p, q), mask=np.eye(len(p), dtype=bool) if p is q else False)
        return float((k**2).mean() - (k.mean(0) ** 2).mean() - (k.mean(1) ** 2).mean() + k.mean() ** 2)

    n, m = len(x), len(y)
    once = 2 * of_pairs(x, x) / n**2 + 4 * of_pairs(x, y) / (n * m) + 2 * of_pairs(y, y) / m**2
    assert once < variance / 2 and found.standard_error == pytest.approx(math.sqrt(variance - once), rel=1e-9)
    biased = clip_distance(a, b)
    k = {
        key: np.exp(-np.square(p[:, None] - q[None]).sum(-1) / 200).mean()
        for key, p, q in (("aa", x, x), ("bb", y, y), ("ab", x, y))
    }
    assert biased.value == pytest.approx(1000 * (k["aa"] + k["bb"] - 2 * k["ab"]), rel=1e-10)


def test_two_halves_of_one_set_have_no_distance_and_the_error_is_the_spread() -> None:
    x = torch.randn(200, 2, 60, 4, generator=torch.Generator().manual_seed(3))
    value, error = np.array([kernel_distance(a, b) for a, b in x]).T
    assert abs(value.mean()) < 3 * value.std() / math.sqrt(200)
    assert value.std() == pytest.approx(error.mean(), rel=0.25)  # 5 % is known of the spread; the jackknife's is 1.4
    apart = [kernel_distance(a + 1, b) for a, b in x[:60]]
    value, error = np.array(apart).T
    assert value.std() == pytest.approx(error.mean(), rel=0.3)


def test_subsets_of_the_whole_set_are_the_whole_set() -> None:
    a, b = seeded_normal("a", (20, 3)), seeded_normal("b", (20, 3))
    found = kernel_distance_of_subsets(a, b, subsets=3, size=20)
    assert found.value == pytest.approx(kernel_distance(a, b).value, rel=1e-10)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_compared_is_refused() -> None:
    refused("N at least 3", kernel_distance, torch.zeros(2, 3), torch.zeros(4, 3))
    refused("N at least 1000", kernel_distance_of_subsets, torch.zeros(999, 3), torch.zeros(1000, 3))
    assert kernel.kernel_distance(torch.ones(4, 3), torch.ones(4, 3)) == (0, 0)


def test_the_error_of_a_difference_is_that_of_rows_of_one_noise() -> None:
    """Two sets that differ little, of one noise: the difference is known much better than either number."""
    generator = torch.Generator().manual_seed(5)
    values, errors, apart = [], [], []
    for _ in range(120):
        x, real = (torch.randn(60, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        near = x + 0.1 * torch.randn(60, 3, generator=generator, dtype=torch.float64)
        found = kernel_difference(1.2 * near, 1.1 * x, real)
        first, second = kernel_distance(1.2 * near, real), kernel_distance(1.1 * x, real)
        assert found.value == pytest.approx(first.value - second.value, abs=1e-12)
        values.append(found.value)
        errors.append(found.standard_error)
        apart.append(math.hypot(first.standard_error, second.standard_error))
    # The deviation of 120 draws is known to 6.5%, and heavy tails of the cubic kernel double that: three of these.
    spread, error = float(np.std(values, ddof=1)), math.sqrt(float(np.mean(np.square(errors))))
    assert 0.7 < error / spread < 1.4
    assert error < 0.7 * float(np.mean(apart))
    refused("two sets of as many samples", kernel_difference, x, x[:50], real)
