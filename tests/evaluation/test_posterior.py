"""Numbers of posterior samples against closed forms, and ranks that are uniform for exact posteriors."""

import math

import pytest
import torch
from torch import Generator, Tensor

from scorefield.evaluation.posterior import (
    coverage,
    mode_masses,
    moments,
    randomised_ranks,
    rank_histogram,
    residual,
    sliced_wasserstein,
    total_variation,
    whitened_std,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 9) -> Tensor:
    return torch.rand(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_a_true_residual_is_one_and_an_exact_one_is_the_largest_error() -> None:
    y, noise = normal(3, 2, 50, seed=0), normal(3, 2, 50, seed=1)
    expected = noise.square().flatten(1).mean(1)
    torch.testing.assert_close(residual(y, y - 0.05 * noise, 0.05), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(residual(y, y - 0.05 * noise, 0.0), 0.05 * noise.abs().flatten(1).amax(1))


def test_moments_of_weighted_samples_are_those_of_repeated_ones_and_one_sample_has_no_spread() -> None:
    x = normal(2, 3, 4, seed=0)
    repeated = x[:, [0, 0, 1, 2]]
    mean, std = moments(x, torch.tensor([[2.0, 1.0, 1.0]] * 2).log())
    torch.testing.assert_close(mean, repeated.mean(1))
    torch.testing.assert_close(std, (repeated.var(1, correction=0) / (1 - 6 / 16)).sqrt())
    torch.testing.assert_close(moments(x)[1], x.std(1))
    assert bool((moments(x[:, :1])[1] == 0).all())


@pytest.mark.parametrize("levels", [0, 3])
def test_ranks_among_exact_samples_are_uniform(levels: int) -> None:
    """Kolmogorov-Smirnov at a false-alarm rate of 1e-4: sqrt(n) D < 2.23. Three levels make atoms of 0.6."""
    count, samples = 20_000, 4
    x = normal(count, samples + 1, seed=0)
    if levels:
        x = (x + 0.8).round().clamp(0, levels - 1)
    ranks = randomised_ranks(x[:, 0], x[:, 1:], uniform(count))
    ordered = ranks.sort().values
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    assert math.sqrt(count) * distance < 2.23
    # Four standard errors of a share of 0.9.
    assert abs(float(coverage(ranks[None])) - 0.9) < 4 * math.sqrt(0.09 / count)
    histogram = rank_histogram(ranks, 5)
    assert float((histogram - 0.2).abs().max()) < 4 * math.sqrt(0.16 / count)


def test_narrow_samples_cover_as_little_as_they_must() -> None:
    """With many samples of half the width, a 90% interval holds erf(1.6449 / 2 / sqrt 2) = 0.589 of the truth."""
    truth, samples = normal(2000, seed=0), 0.5 * normal(2000, 100, seed=1)
    ranks = randomised_ranks(truth, samples, uniform(2000))
    expected = math.erf(1.6449 / 2 / math.sqrt(2))
    assert abs(float(coverage(ranks[None])) - expected) < 4 * math.sqrt(0.25 / 2000) + 0.01
    weights = torch.zeros(2000, 100, dtype=torch.float64)
    torch.testing.assert_close(randomised_ranks(truth, samples, uniform(2000), weights), ranks)
    histogram = rank_histogram(ranks, 5)
    assert histogram[0] > 0.25 and histogram[4] > 0.25 and histogram[2] < 0.15


def test_only_the_values_that_count_are_covered() -> None:
    ranks = torch.tensor([[0.5, 0.01], [0.99, 0.5], [0.5, 0.5]], dtype=torch.float64)
    where = torch.tensor([[True, False]])
    assert coverage(ranks, where).tolist() == [1.0, 0.0, 1.0]
    assert rank_histogram(ranks, 2, where).tolist() == pytest.approx([0.0, 1.0])
    assert bool(coverage(ranks, torch.zeros(1, 2, dtype=torch.bool)).isnan().all())


def test_the_sliced_distance_of_a_shift_and_of_weights() -> None:
    """A shift by d of one dimension is |d| away: in units of its deviation s, |d| / s."""
    reference = 3 * normal(500, 1, seed=0)
    spread = float(reference.std(correction=0))
    assert sliced_wasserstein(reference + 0.6, reference) == pytest.approx(0.6 / spread, rel=1e-9)
    assert sliced_wasserstein(reference[torch.randperm(500)], reference) == pytest.approx(0, abs=1e-7)
    # Gaussians of deviations a and b: W2 = |a - b|; one that is twice as wide is one deviation away.
    assert sliced_wasserstein(2 * reference, reference) == pytest.approx(
        float(reference.square().mean().sqrt()) / spread, rel=1e-9
    )
    x = normal(40, 3, seed=1)
    weighted = sliced_wasserstein(x, normal(300, 3, seed=2), torch.tensor([1.0, 2.0] * 20).log())
    repeated = sliced_wasserstein(x.repeat_interleave(torch.tensor([1, 2] * 20), 0), normal(300, 3, seed=2))
    assert weighted == pytest.approx(repeated, rel=1e-9)


def test_the_whitened_deviation_and_masses_of_modes() -> None:
    scale = torch.tensor([[1.0, 0.0], [5.0, 0.1]], dtype=torch.float64)
    reference = normal(400, 2, seed=0) @ scale.T
    assert whitened_std(2 * reference + 1, reference) == pytest.approx(2.0, rel=1e-9)
    belongs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    masses = mode_masses(belongs, torch.tensor([0.25, 0.25, 0.25, 0.25]).log())
    assert masses.tolist() == pytest.approx([0.625, 0.375])
    assert total_variation(masses, torch.tensor([0.5, 0.5])) == pytest.approx(0.125)
