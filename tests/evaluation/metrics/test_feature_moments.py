"""Moments that merge, against numpy's of all at once."""

import numpy as np
from image_files import refused
from seeded import seeded_normal

from scorefield.evaluation.metrics.moments import Moments


def test_blocks_merge_to_the_moments_of_all_at_once() -> None:
    x = seeded_normal("moments", (101, 4)) + 1e3  # far from 0, where sums of squares would lose digits
    found = Moments.of(x, block=10)
    assert found.count == 101
    assert np.allclose(found.mean, x.mean(0), rtol=1e-14)
    assert np.allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=1e-12)
    rest = found - Moments.of(x[:30])
    assert rest.count == 71 and np.allclose(rest.covariance, np.cov(x[30:].numpy(), rowvar=False), rtol=0, atol=1e-10)


def test_parts_that_end_where_blocks_end_have_the_same_bits() -> None:
    x = seeded_normal("moments", (57, 3)).float()
    whole = Moments.of(x, block=8)
    for border in (8, 24):
        part = Moments.of(x[:border], block=8)
        for start in range(border, 57, 8):
            part = part + Moments.of(x[start : start + 8], block=8)
        assert part == whole
    assert Moments.of(x, block=16) != whole  # so that equality means something


def test_statistics_of_others_keep_their_covariance() -> None:
    spread = np.array([[2.0, 0.5], [0.5, 1.0]])
    for count in (None, 10):
        assert np.allclose(Moments.given([0.0, 1.0], spread, count).covariance, spread)
    refused("expected moments with a count", Moments.given([0, 1], spread).__add__, Moments.given([0, 1], spread, 10))
    refused("got (1,) and (2, 2)", Moments.given, [0.0], spread)
    refused("NaN or infinity", Moments.given, [0.0, np.nan], spread)
