"""Tests of memorisation: planted copies, a sampler that only copies, and one that does not."""

import math

import numpy as np
import pytest
import torch
from image_files import refused
from scipy.stats import mannwhitneyu
from seeded import seeded_normal

from scorefield.evaluation.metrics.memorisation import authenticity, memorisation

GENERATOR = torch.Generator().manual_seed(5)


def drawn(n: int) -> torch.Tensor:
    """Samples of a mixture of 3 in 12 dimensions."""
    which = torch.randint(3, (n,), generator=GENERATOR)
    return 2 * seeded_normal("means", (3, 12)).float()[which] + 0.5 * torch.randn(n, 12, generator=GENERATOR)


def test_planted_copies_are_all_found() -> None:
    training, held_out, samples = drawn(400), drawn(400), drawn(400)
    samples[:20] = training[:20]
    samples[20:40] = training[20:40] + 0.05 * torch.randn(20, 12, generator=GENERATOR)
    found = memorisation(samples, training, held_out)
    assert bool(found.flagged[:40].all()) and found.indices[:40, 0].tolist() == list(range(40))
    assert found.false_share == 3 / 400  # below the 4th of 400 ratios: floor(0.01 401) - 1
    assert float(found.flagged[40:].double().mean()) <= 0.03  # of 360 at 1 %: above that once in 1000 runs
    assert found.share == pytest.approx(float(found.flagged.double().mean()))
    theirs = mannwhitneyu(
        found.distances[:, 0],
        _nearest(held_out, training),
        alternative="less",
        method="asymptotic",
        use_continuity=False,
    )
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)


def _nearest(x: torch.Tensor, among: torch.Tensor) -> np.ndarray:
    return torch.cdist(x.double(), among.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1).values.numpy()


def test_a_sampler_that_copies_the_training_set_is_found() -> None:
    training, held_out = drawn(200), drawn(200)
    found = memorisation(training, training, held_out)
    assert found.share == 1 and found.authentic == 0 and found.z < -15 and found.p < 1e-50
    assert authenticity(training, training) == 0 and found.authentic_held_out > 0.3
    leaked = torch.cat([training[:20], held_out])  # no ratio is below that of these
    assert memorisation(training, training, leaked).share == 1
    twice = torch.cat([training, training])  # duplicates in the training set: both distances are 0
    assert memorisation(training, twice, held_out, k=2).share == 1


def test_an_exact_sampler_passes_at_the_stated_rate() -> None:
    found = [memorisation(drawn(100), drawn(100), drawn(100), rate=0.05) for _ in range(50)]
    share, z = np.array([(each.share, each.z) for each in found]).T
    assert abs(z.mean()) < 3 / math.sqrt(50) and 0.7 < z.std() < 1.3
    assert share.mean() == pytest.approx(5 / 101, abs=3 * share.std() / math.sqrt(50))


def test_authenticity_is_that_of_all_distances() -> None:
    samples, training = drawn(50), drawn(60)
    training[7] = training[8]
    among = torch.cdist(training.double(), training.double(), compute_mode="donot_use_mm_for_euclid_dist")
    among.fill_diagonal_(math.inf)
    to = torch.cdist(samples.double(), training.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    expected = float((among.min(1).values[to.indices] < to.values).double().mean())
    assert 0 < expected < 1 and authenticity(samples, training) == expected


def test_too_few_held_out_items_are_refused() -> None:
    refused("at least 99 held-out items", memorisation, drawn(10), drawn(10), drawn(98))
    refused("k of at least 2", memorisation, drawn(10), drawn(10), drawn(100), k=1)
