"""Nearest neighbours, precision and recall, density and coverage: in blocks, at ties, and their expectations."""

import math

import numpy as np
import pytest
import torch
from image_files import refused
from scipy.spatial.distance import cdist
from seeded import seeded_normal

from scorefield.evaluation.metrics import rows
from scorefield.evaluation.metrics.neighbours import (
    density_coverage,
    expected_coverage,
    nearest,
    nearest_others,
    precision_recall,
)


@pytest.fixture(params=[1 << 25, 600], autouse=True)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and in blocks of few rows."""
    monkeypatch.setattr(rows.blocks, "__defaults__", (request.param,))
    monkeypatch.setattr("scorefield.evaluation.metrics.neighbours.ENTRIES", request.param)


def test_nearest_is_that_of_all_distances_also_far_from_zero() -> None:
    x, y = seeded_normal("x", (40, 5)) + 1e5, seeded_normal("y", (30, 5)) + 1e5
    y[3] = x[7]
    distances, indices = nearest(x, y, 3)
    all_of_them = cdist(x.numpy(), y.numpy())
    assert np.array_equal(indices, np.argsort(all_of_them, 1)[:, :3])
    assert np.allclose(distances, np.sort(all_of_them, 1)[:, :3], rtol=1e-12)
    assert distances[7, 0] == 0 and indices[7, 0] == 3
    among = cdist(y.numpy(), y.numpy())
    np.fill_diagonal(among, np.inf)
    assert np.array_equal(nearest_others(y, 2)[1], np.argsort(among, 1)[:, :2])


def test_precision_counts_the_border_and_density_does_not() -> None:
    real = seeded_normal("real", (30, 6))
    found, dense = precision_recall(real, real, 3), density_coverage(real, real, 3)
    assert found.precision.value == found.recall.value == 1
    assert dense.density.value == 1  # a ball has its centre and k - 1 others, and the k-th on its border
    line, fakes = torch.tensor([[0.0], [1], [3], [7]]), torch.tensor([[11.0], [30]])  # 11 is on the border of 7's ball
    assert precision_recall(fakes, line, 1).precision.value == 0.5
    assert density_coverage(fakes, line, 1).density.value == 0
    inside = precision_recall(seeded_normal("fake", (50, 6)), real, 1)
    radius = np.sort(cdist(real.numpy(), real.numpy()), 1)[:, 1]
    distances = cdist(seeded_normal("fake", (50, 6)).numpy(), real.numpy())
    assert inside.precision.value == (distances <= radius).any(1).mean()


def test_a_collapsed_sampler_has_precision_and_no_recall() -> None:
    real = seeded_normal("real", (60, 4))
    fake = real[:1] + 1e-3 * seeded_normal("fake", (50, 4))
    found, dense = precision_recall(fake, real), density_coverage(fake, real)
    assert found.precision.value == 1 and found.recall.value <= 1 / 60
    assert dense.coverage.value < 0.5
    back = precision_recall(real, fake)
    assert (back.precision.value, back.recall.value) == (found.recall.value, found.precision.value)


def test_two_sets_of_one_distribution_have_the_expected_density_and_coverage() -> None:
    generator, found = torch.Generator().manual_seed(4), []
    for _ in range(20):
        fake, real = torch.randn(80, 6, generator=generator), torch.randn(50, 6, generator=generator)
        dense = density_coverage(fake, real)
        found.append((dense.density.value - 1, dense.coverage.value - expected_coverage(50, 80, 5)))
    mean, error = np.mean(found, 0), np.std(found, 0) / math.sqrt(20)
    assert (np.abs(mean) < 3 * error).all()  # 0.3 % of false alarms each
    assert expected_coverage(1000, 1000, 3) == pytest.approx(1 - 2**-3, abs=1e-3)


def test_too_few_for_a_neighbour_is_refused() -> None:
    refused("k of 1 .. 3, got k = 4", nearest, torch.zeros(2, 3), torch.zeros(3, 3), 4)
    refused("k of 1 .. 2, got k = 3", precision_recall, torch.zeros(5, 3), torch.zeros(3, 3), 3)
