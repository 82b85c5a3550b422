"""Anomaly scores against scikit-learn, and against sums over all pairs."""

import lzma
import math
import zlib

import numpy as np
import pytest
import torch
from image_files import refused
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from scorefield.evaluation import plot_histograms
from scorefield.evaluation.anomaly import GaussianFit, auroc, log_errors, typicality
from scorefield.evaluation.plain_codecs import XZ, plain_lengths


def sides(n: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which many are equal, within a side and between the sides."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 8, n).astype(float), rng.integers(2, 10, m).astype(float)


@pytest.mark.parametrize(("n", "m"), [(40, 70), (5, 1)])
def test_the_auroc_is_scikit_learns_with_ties(n: int, m: int) -> None:
    normal, anomalous = sides(n, m)
    truth = np.r_[np.zeros(n), np.ones(m)]
    found = auroc(normal, anomalous)
    assert found.value == pytest.approx(roc_auc_score(truth, np.r_[normal, anomalous]), abs=1e-12)
    assert auroc(anomalous, normal).value == pytest.approx(1 - found.value, abs=1e-12)
    assert math.isnan(found.standard_error) == (m == 1)


def test_its_standard_error_is_that_of_all_pairs() -> None:
    # DeLong's structural components, written out: psi is 1, 1/2 or 0 for each pair.
    normal, anomalous = sides(30, 50)
    psi = (anomalous[:, None] > normal).astype(float) + 0.5 * (anomalous[:, None] == normal)
    variance = psi.mean(1).var(ddof=1) / 50 + psi.mean(0).var(ddof=1) / 30
    assert auroc(normal, anomalous).standard_error == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_equal_sides_give_a_half_exactly_and_apart_ones_the_ends() -> None:
    scores = np.random.default_rng(1).standard_normal(333)
    assert auroc(scores, scores).value == 0.5
    assert auroc(np.ones(4), np.ones(7)) == (0.5, 0.0)
    assert (auroc(scores, scores + 10).value, auroc(scores, scores - 10).value) == (1.0, 0.0)


def test_a_fit_gives_scikit_learns_distances_whose_mean_is_the_number_of_features() -> None:
    rng = np.random.default_rng(2)
    features, others = (rng.standard_normal((count, 3)) @ rng.standard_normal((3, 3)) for count in (60, 9))
    fit = GaussianFit.of(features)
    np.testing.assert_allclose(fit(others), EmpiricalCovariance().fit(features).mahalanobis(others), rtol=1e-9)
    assert fit(features).mean() == pytest.approx(3, rel=1e-9)
    constant = np.c_[features, np.full(60, 2.0)]  # a feature that never varied in training
    assert np.isfinite(GaussianFit.of(constant)(constant)).all()
    assert GaussianFit.of(constant)(constant + np.array([0, 0, 0, 0.1])).min() > 1e9


def test_a_training_sample_is_as_far_as_from_a_fit_without_it() -> None:
    features = np.random.default_rng(4).standard_normal((12, 3)) * [1.0, 5.0, 0.1]
    without = [GaussianFit.of(np.delete(features, i, 0))(features[i : i + 1])[0] for i in range(12)]
    np.testing.assert_allclose(GaussianFit.of(features).left_out(features), without, rtol=1e-8)
    few = features[:4]  # a fit of three others has no spread in one direction
    with pytest.raises(ValueError, match="expected at least 5 training samples"):
        GaussianFit.of(few).left_out(few)
    assert np.isfinite(GaussianFit.of(features[:5]).left_out(features[:5])).all()


def test_errors_by_level_are_logs_of_means_of_neighbours() -> None:
    errors = np.array([[1.0, 3.0, 4.0, 4.0, 9.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(np.exp(log_errors(errors, 2)), [[8 / 3, 6.5], [1 / 3, 1]], rtol=1e-12)
    assert np.isfinite(log_errors(errors, 5)).all()


def test_too_likely_is_not_typical() -> None:
    assert typicality(np.array([1.0, 3.0, 6.0]), np.array([2.0, 4.0])).tolist() == [2.0, 0.0, 3.0]


@pytest.mark.parametrize("shape", [(1, 12, 9), (3, 8, 8), (50,)])
def test_a_plain_length_is_that_of_a_file_that_gives_the_image_back(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    noise, flat = rng.integers(0, 256, shape).astype(np.uint8), np.full(shape, 7, np.uint8)
    lengths = plain_lengths(np.stack([noise, flat]), 256)
    packed = lzma.compress(flat.tobytes(), lzma.FORMAT_RAW, filters=XZ)
    assert lzma.decompress(packed, lzma.FORMAT_RAW, filters=XZ) == flat.tobytes()
    assert lengths[1] == 8 * len(packed)  # a PNG has 57 bytes beside its data
    # Noise cannot be shortened. xz adds a few bytes to a block that it stores; a PNG's rows have a byte each.
    assert 0 <= lengths[0] - 8 * noise.size <= 8 * 8


def test_a_smooth_image_is_shorter_as_a_png() -> None:
    ramp = (np.add.outer(np.arange(28), 3 * np.arange(28)) + 5 * np.arange(28) % 7).astype(np.uint8)[None]
    rows = np.diff(ramp[0], axis=1, prepend=0).astype(np.uint8)  # PNG's filter "sub", then deflate
    deflated = len(zlib.compress(b"".join(b"\1" + row.tobytes() for row in rows), 9))
    assert plain_lengths(ramp[None], 256)[0] <= 8 * (deflated + 57 + 2)
    assert plain_lengths(ramp[None].astype(np.uint16) * 3, 1024)[0] > 2 * plain_lengths(ramp[None], 256)[0]


def test_what_are_no_scores_is_refused() -> None:
    refused("at least one", auroc, np.array([]), np.ones(3))
    refused("1 that are not finite", auroc, np.ones(3), np.array([1.0, math.nan]))
    refused("with 1 axes", auroc, np.ones((3, 1)), np.ones(3))
    refused("1 to 4 bands", log_errors, np.ones((2, 4)), 5)
    refused("expected more than 3 training samples", GaussianFit.of, np.ones((3, 3)))


def test_histograms_share_their_bins_and_lose_no_value() -> None:
    rng = torch.Generator().manual_seed(5)
    batches = {"one": torch.randn(400, generator=rng), "two": torch.cat([torch.full((99,), 2.0), torch.tensor([1e6])])}
    figure = plot_histograms({"x": batches, "y": {"same": torch.ones(3)}}, bins=20)
    outlines = figure.axes[0].patches
    ends = [outline.get_xy()[:, 0] for outline in outlines]
    assert len(figure.axes) == 2 and len(outlines) == 2 and ends[0].max() == ends[1].max() < 1e6
    for outline in outlines:  # a polygon around bars, by the shoelace formula
        x, y = outline.get_xy().T
        assert abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2 == pytest.approx(1)
