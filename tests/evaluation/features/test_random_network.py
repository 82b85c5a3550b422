"""Features of random weights: the same everywhere, for any shape, of a sample alone."""

import math

import pytest
import torch
from image_files import refused
from torch import Tensor
from torch.testing import assert_close

from scorefield.evaluation.features import Random, StoredAs

# Of these settings on any machine: they would show another generator, or another order of its draws.
WEIGHTS = "7c8fdffa3c5f57ff694e4f56e73d169a14d23f1e01107f402ef93bcc06e50a15"


def drawn(stored_as: StoredAs, count: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if stored_as.levels is None:
        return torch.randn(count, *stored_as.shape, generator=generator)
    return torch.randint(stored_as.levels, (count, *stored_as.shape), generator=generator)


def test_weights_are_the_same_on_every_machine() -> None:
    features = Random(StoredAs((1, 8, 8), 17), width=4)
    assert features.weights_sha256 == WEIGHTS
    scaled = torch.cat([weight.flatten() * math.sqrt(weight[0].numel()) for weight in features.weights])
    assert float(scaled.var()) == pytest.approx(2, rel=0.15)  # 1,044 weights of kurtosis 1.8: five deviations


@pytest.mark.parametrize(
    ("shape", "levels", "layers"),
    [
        ((1, 8, 8), 17, 4), ((5, 28, 20), 256, 6), ((3, 32, 32), 256, 8), ((1, 1, 1), 2, 2), ((2, 50), None, 8),
        ((2, 9, 6, 7), None, 2), ((3,), None, 4),
    ],
)  # fmt: skip
def test_any_shape_and_any_batch(shape: tuple[int, ...], levels: int | None, layers: int) -> None:
    stored_as = StoredAs(shape, levels)
    x = drawn(stored_as)
    features = Random(stored_as, width=3).fitted(x)
    found = features(x)["features"]
    assert len(features.weights) == layers and found.shape == (5, sum(len(w) for w in features.weights))
    assert found.isfinite().all() and (found.std(0) > 0).any()
    for batch in (1, 2):
        assert_close(features.of(x, batch)["features"], found)
    again = Random(stored_as, width=3).fitted(x)
    assert torch.equal(again(x)["features"], found) and again.fingerprint == features.fingerprint


def test_a_layer_by_hand() -> None:
    """The first layer of a vector, in the coordinates of the reference; and of an image of one pixel."""
    values = StoredAs((2,), None)
    reference = torch.tensor([[0.0, 2.0], [4.0, 2.0]])  # mean 2, deviation sqrt(2)
    features = Random(values, width=3).fitted(reference)
    expected = (features.weights[0] @ ((torch.tensor([1.0, 3.0]) - 2) / math.sqrt(2))).relu()
    assert_close(features(torch.tensor([[1.0, 3.0]]))["features"][0, :3], expected)
    pixel = Random(StoredAs((1, 1, 1), 2), width=3)
    expected = (pixel.weights[0][:, 0, 1, 1] * 1.0).relu()  # level 1 of 2 is 1, and zeros are around it
    assert_close(pixel(torch.ones(1, 1, 1, 1))["features"][0, :3], expected)


def test_settings_change_features_and_wrong_ones_are_refused() -> None:
    grey = StoredAs((1, 8, 8), 17)
    assert Random(grey, seed=1).fingerprint != Random(grey).fingerprint != Random(grey, width=32).fingerprint
    refused("call fitted(reference) first", Random(StoredAs((3,), None)), torch.zeros(1, 3))
    refused("vectors, series, images or volumes", Random, StoredAs((1, 2, 3, 4, 5), None))
    refused("width of at least 1", Random, grey, "cpu", 0, 0)
