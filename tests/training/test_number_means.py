"""Means of what steps report: over all examples, from a checkpoint on to the same bits."""

import numpy as np
import torch

from scorefield.training.monitor.number_means import NumberMeans


def test_means_are_over_examples_and_survive_a_checkpoint() -> None:
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal(size).astype(np.float32) for size in (8, 8, 4)]
    unbroken, before = NumberMeans(), NumberMeans()
    for values in steps:
        unbroken.add(loss=torch.from_numpy(values), norm=torch.tensor(float(values[0])))
    before.add(loss=torch.from_numpy(steps[0]), norm=torch.tensor(float(steps[0][0])))
    after = NumberMeans()
    after.load_state_dict(before.state_dict())
    for values in steps[1:]:
        after.add(loss=torch.from_numpy(values), norm=torch.tensor(float(values[0])))
    means = unbroken.means()
    assert after.means() == means
    assert np.isclose(means["loss"], np.concatenate(steps).astype(np.float64).mean(), rtol=1e-12)
    assert np.isclose(means["norm"], np.mean([float(values[0]) for values in steps]), rtol=1e-12)


def test_a_number_that_comes_later_has_its_own_count() -> None:
    means = NumberMeans()
    means.add(loss=torch.tensor([1.0, 3.0]))
    means.add(loss=torch.tensor([5.0, 7.0]), discriminator=torch.tensor([2.0, 4.0]))
    assert means.means() == {"loss": 4.0, "discriminator": 3.0}
    means.clear()
    assert means.means() == {}
