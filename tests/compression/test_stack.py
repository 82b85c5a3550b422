"""The stack of bits: what is popped, its distribution, and what numbers cost."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import norm

from scorefield.compression import Stack
from scorefield.compression.plain import Adaptive


def random_stack(words: int = 20_000) -> Stack:
    return Stack(np.random.default_rng(0).integers(1, 2**32, words, dtype=np.uint32))


@pytest.mark.parametrize("std", [1.0, 1.7, 6.0])
def test_what_is_drawn_has_the_mean_and_the_variance(std: float) -> None:
    """Within four standard errors: a false alarm in 16,000. Without Sheppard's correction the second is 19 away."""
    n = 50_000
    mean = np.random.default_rng(1).uniform(-50, 50, n)
    away = random_stack().pop_draw(mean, std) - mean
    assert abs(away.mean()) < 4 * std / math.sqrt(n)
    assert abs((away**2).mean() / std**2 - 1) < 4 * math.sqrt(2 / n)


def test_a_gaussian_costs_its_logarithm() -> None:
    stack, rng = random_stack(), np.random.default_rng(2)
    mean = rng.uniform(-1e6, 1e6, 2000)
    k = np.rint(mean + rng.normal(0, 3.0, 2000)).astype(np.int64)
    before = stack.bits
    stack.push_normal(k, mean, 3.0)
    assert stack.bits - before == pytest.approx(-norm.logpdf(k, mean, 3.0).sum() / math.log(2), rel=1e-3)
    np.testing.assert_array_equal(stack.pop_normal(mean, 3.0), k)
    assert stack.bits == before


@pytest.mark.parametrize("away", [0, 9, 10, 11, 12, -9, -10, 1000, -(10**9), 2**55])
def test_numbers_far_from_the_mean_are_escaped(away: int) -> None:
    stack = random_stack(100)
    words, mean, k = stack.words, np.array([0.3, -7.4, 2.5]), np.array([0, away - 7, 3])
    stack.push_normal(k, mean, 1.2)
    np.testing.assert_array_equal(stack.pop_normal(mean, 1.2), k)
    np.testing.assert_array_equal(stack.words, words)


@pytest.mark.parametrize("levels", [2, 3, 256, 2**16, 70_000, 2**24])
def test_levels_outside_of_their_rows_and_equally_likely_ones(levels: int) -> None:
    stack, rng = random_stack(100), np.random.default_rng(3)
    words, k, first = stack.words, rng.integers(0, levels, 50), rng.integers(0, levels, 50)
    p = rng.dirichlet(np.ones(3), 50)
    stack.push_rows(k, first, p, levels)
    stack.push_uniform(k, levels)
    np.testing.assert_array_equal(stack.pop_uniform(50, levels), k)
    np.testing.assert_array_equal(stack.pop_rows(first, p, levels), k)
    np.testing.assert_array_equal(stack.words, words)


def test_scrambling_is_undone_by_itself_and_keeps_short_stacks() -> None:
    for count in (0, 1, 2, 50):
        stack = Stack(np.arange(1, count + 1, dtype=np.uint32))
        words = stack.words
        stack.scramble(7, 640)
        assert count < 2 or not np.array_equal(stack.words, words)
        stack.scramble(7, 640)
        np.testing.assert_array_equal(stack.words, words)


def test_what_is_pushed_does_not_decide_what_is_popped_after_scrambling() -> None:
    """Correlations of 8,000 numbers: 0.05 is more than four standard errors. Without scrambling it is 1."""
    stack, mean = random_stack(), np.zeros(8000)
    pushed = stack.pop_draw(mean, 1.0)
    stack.push_draw(pushed, mean, 1.0)
    stack.scramble(0, 8 * 8000)
    assert abs(np.corrcoef(stack.pop_draw(mean, 1.0), pushed)[0, 1]) < 0.05


def test_the_plain_code_learns_and_comes_back() -> None:
    """Images of two levels next to each other, of 64: 6 bits a value at first, and far less after some."""
    rng = np.random.default_rng(4)
    images = [rng.choice([3, 40], p=[0.8, 0.2], size=48) for _ in range(6)]
    adaptive, stack = Adaptive(64, (1, 8, 6)), Stack()
    coded = [adaptive.rows(image) for image in images]
    adaptive.push(stack, images, [rows for _, rows in coded])
    entropy = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    assert coded[-1][0] / 48 < 1.5 * entropy
    assert stack.bits == pytest.approx(sum(bits for bits, _ in coded), abs=40)
    np.testing.assert_array_equal(Adaptive(64, (1, 8, 6)).pop(stack, 6), np.stack(images))
    assert len(stack.words) == 0
    assert Counter(len(rows) for _, rows in coded) == {48: 6}


def test_large_images_are_stored_without_learning() -> None:
    image = np.random.default_rng(5).integers(0, 2**16, 300)
    adaptive, stack = Adaptive(2**16, (300,)), Stack()
    bits, rows = adaptive.rows(image)
    adaptive.push(stack, [image], [rows])
    assert bits == 16 * 300 == pytest.approx(stack.bits, abs=40)
    np.testing.assert_array_equal(Adaptive(2**16, (300,)).pop(stack, 1)[0], image)
