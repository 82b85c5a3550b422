"""The Frechet distance, against closed forms and scipy's matrix root."""

import numpy as np
import pytest
import torch
from image_files import refused
from scipy.linalg import sqrtm

from scorefield.evaluation.metrics.frechet import frechet_distance
from scorefield.evaluation.metrics.moments import Moments


def covariance(seed: int, d: int = 5, rank: int = 5) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((d, rank))
    return factor @ factor.T


def test_gaussians_with_shared_axes_have_a_closed_form() -> None:
    turn = np.linalg.qr(covariance(3))[0]
    deviations_a, deviations_b = np.array([3.0, 2, 1, 0.5, 0]), np.array([1.0, 2, 4, 0, 0.1])
    a = (np.arange(5.0), turn * deviations_a**2 @ turn.T)
    b = (np.zeros(5), turn * deviations_b**2 @ turn.T)
    expected = 30 + np.square(deviations_a - deviations_b).sum()
    found = frechet_distance(Moments.given(*a), Moments.given(*b))
    assert found == pytest.approx(expected, abs=1e-6)  # the root of float64's rounding at 0


@pytest.mark.parametrize("rank", [5, 2])
def test_any_gaussians_by_the_matrix_root(rank: int) -> None:
    a, b = (np.ones(5), covariance(0)), (np.zeros(5), covariance(1, rank=rank))
    root = sqrtm(a[1] @ b[1] + 1e-13 * np.eye(5)).real
    expected = 5 + np.trace(a[1] + b[1] - 2 * root)
    found = frechet_distance(Moments.given(*a), Moments.given(*b))
    assert found == pytest.approx(expected, rel=1e-5)  # of sqrtm, where the rank is not full


def test_features_become_moments() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mean, spread = Moments.of(x).mean, Moments.of(x).covariance
    assert np.allclose(mean, x.mean(0)) and np.allclose(spread, torch.cov(x.T.double()))
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-7)
    assert frechet_distance(x, x + torch.tensor([3.0, 0, 4])) == pytest.approx(25, rel=1e-5)
    assert frechet_distance(x[:, :1], 2 * x[:, :1]) == pytest.approx(float(mean[0] ** 2 + spread[0, 0]), rel=1e-6)


def test_what_are_no_features_is_refused() -> None:
    refused("got (4, 3) and (4, 2)", frechet_distance, torch.zeros(4, 3), torch.zeros(4, 2))
    refused("N at least 2", frechet_distance, torch.zeros(1, 3), torch.zeros(4, 3))
    refused("NaN or infinity", frechet_distance, torch.zeros(4, 3), torch.zeros(4, 3) / 0)
