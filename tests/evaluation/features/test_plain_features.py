"""Pixels and principal components, against NumPy, and what stored samples must be."""

import numpy as np
import pytest
import torch
from image_files import refused
from torch import Tensor
from torch.testing import assert_close

from scorefield.evaluation.features import Features, Pixels, PrincipalComponents, Random, StoredAs

GREY = StoredAs((1, 4, 3), 17)
REAL = StoredAs((3,), None)


def stored(count: int = 30, shape: tuple[int, ...] = (1, 4, 3), levels: int = 17, seed: int = 0) -> Tensor:
    return torch.randint(levels, (count, *shape), generator=torch.Generator().manual_seed(seed))


def test_pixels_are_the_values() -> None:
    x = stored()
    assert_close(Pixels(GREY)(x)["features"], x.flatten(1) / 16)
    values = torch.randn(5, 3)
    assert_close(Pixels(REAL).of(values, batch=2)["features"], values)
    refused("at most 4,096 values", Pixels, StoredAs((3, 64, 64), 256))


@pytest.mark.parametrize("count", [30, 8])
def test_principal_components_are_those_of_a_singular_value_decomposition(count: int) -> None:
    reference, x = stored(count), stored(9, seed=1)
    features = PrincipalComponents(GREY, components=4).fitted(reference)
    flat, mean = x.flatten(1).numpy() / 16, reference.flatten(1).numpy().mean(0) / 16
    axes = np.linalg.svd(reference.flatten(1).numpy() / 16 - mean)[2][:4]
    largest = axes[np.arange(4), np.abs(axes).argmax(1)]
    found = features(x)["features"]
    assert_close(found.double().numpy(), (flat - mean) @ (axes * np.sign(largest)[:, None]).T, atol=1e-6, rtol=1e-5)
    assert_close(features(x[3:4])["features"], found[3:4])
    assert features.fingerprint != PrincipalComponents(GREY, 4).fitted(x).fingerprint
    assert features.fingerprint == PrincipalComponents(GREY, 4).fitted(reference).fingerprint


def test_principal_components_need_their_reference() -> None:
    refused("call fitted(reference) first", PrincipalComponents(GREY), stored())
    refused("at least 12 reference samples", PrincipalComponents(GREY).fitted, stored(11))
    refused("at least 1", PrincipalComponents, GREY, 0)


@pytest.mark.parametrize("features", [Pixels(GREY), Random(GREY, width=2)])
def test_samples_that_are_none_have_one_line(features: Features) -> None:
    refused("got (4, 3)", features, stored()[0, 0])
    refused("got (2, 1, 3, 4)", features, stored(2).mT)
    refused("got none", features, stored(0))
    refused("got NaN", features, torch.full((1, 1, 4, 3), torch.nan))
    refused("got values of 0 .. 17", features, stored(30, levels=18))
    refused("got values of 0.5 .. 0.5", features, torch.full((1, 1, 4, 3), 0.5))
    refused("got ()", features, torch.tensor(1.0))
