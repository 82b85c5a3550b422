"""The Frechet distance, against closed forms and scipy's matrix root; its error and bias, over draws."""

import math

import numpy as np
import pytest
import torch
from image_files import refused
from scipy.linalg import sqrtm
from seeded import seeded_normal
from torch import Tensor

from scorefield.evaluation.metrics.frechet import frechet_at_infinity, frechet_distance, frechet_estimate
from scorefield.evaluation.metrics.moments import Moments
from scorefield.models.analytic import GaussianMixture


def covariance(seed: int, d: int = 5, rank: int = 5) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((d, rank))
    return factor @ factor.T


def test_gaussians_with_shared_axes_have_a_closed_form() -> None:
    turn = np.linalg.qr(covariance(3))[0]
    deviations_a, deviations_b = np.array([3.0, 2, 1, 0.5, 0]), np.array([1.0, 2, 4, 0, 0.1])
    a = Moments.given(np.arange(5.0), turn * deviations_a**2 @ turn.T)
    b = Moments.given(np.zeros(5), turn * deviations_b**2 @ turn.T)
    expected = 30 + np.square(deviations_a - deviations_b).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)  # the root of float64's rounding at 0


@pytest.mark.parametrize("rank", [5, 2])
def test_any_gaussians_by_the_matrix_root(rank: int) -> None:
    a, b = (np.ones(5), covariance(0)), (np.zeros(5), covariance(1, rank=rank))
    root = sqrtm(a[1] @ b[1] + 1e-13 * np.eye(5)).real
    expected = 5 + np.trace(a[1] + b[1] - 2 * root)
    found = frechet_distance(Moments.given(*a), Moments.given(*b))
    assert found == pytest.approx(expected, rel=1e-5 if rank < 5 else 1e-12)  # of sqrtm, where the rank is not full


def test_features_fewer_than_their_width_have_the_distance_of_their_moments() -> None:
    a, b = seeded_normal("a", (30, 50)), 1.3 * seeded_normal("b", (25, 50)) + 0.2
    expected = frechet_distance(a, b)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, Moments.of(b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [200, 10])
def test_the_distance_moves_as_a_distance_does(count: int) -> None:
    x, y = seeded_normal("x", (count, 12)), 2 * seeded_normal("y", (count, 12))
    shift = torch.zeros(12).double()
    shift[0], shift[2] = 3, 4
    turn = torch.linalg.qr(seeded_normal("turn", (12, 12)))[0]
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + shift) == pytest.approx(25, rel=1e-8)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(frechet_distance(x, y), rel=1e-10)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)


def test_the_distance_from_a_point_has_a_closed_form() -> None:
    x, point = seeded_normal("x", (100, 5)), torch.ones(100, 5)
    expected = float((x.mean(0) - 1).square().sum() + x.var(0).sum())
    for pair in ((x, point), (point, x)):
        assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-12)
        assert frechet_estimate(*pair).value == pytest.approx(expected, rel=1e-12)
    assert frechet_estimate(point, point).value == 0


def test_what_are_no_features_is_refused() -> None:
    refused("got (4, 3) and (4, 2)", frechet_distance, torch.zeros(4, 3), torch.zeros(4, 2))
    refused("N at least 2", frechet_distance, torch.zeros(1, 3), torch.zeros(4, 3))
    refused("NaN or infinity", frechet_distance, torch.zeros(4, 3), torch.zeros(4, 3) / 0)
    refused("got 3 and 2", frechet_distance, torch.zeros(4, 3), Moments.of(torch.zeros(4, 2)))
    refused("N at least 40", frechet_estimate, torch.zeros(39, 3), torch.zeros(50, 3))
    assert math.isfinite(frechet_at_infinity(seeded_normal("x", (5000, 2)), seeded_normal("y", (50, 2))).standard_error)
    refused("at least 5000 samples", frechet_at_infinity, torch.zeros(4999, 3), torch.zeros(50, 3))


def estimates(wrong: float, exact: bool, draws: int, n: int, seed: int) -> np.ndarray:
    """Of N(0, s^2) with deviations `wrong` times too large, d = 8: rows of `FrechetEstimate`, and the truth."""
    generator, scale = torch.Generator().manual_seed(seed), torch.linspace(0.3, 2, 8).double()
    truth = float(((wrong - 1) * scale).square().sum())

    def draw(of: float) -> Tensor:
        return of * scale * torch.randn(n, 8, generator=generator, dtype=torch.float64)

    reference = Moments.given(np.zeros(8), np.diag(scale.numpy() ** 2))
    rows = [frechet_estimate(draw(wrong), reference if exact else draw(1)) for _ in range(draws)]
    return np.array([(*row, truth) for row in rows])


@pytest.mark.parametrize(("wrong", "exact"), [(1.0, False), (1.3, True)])
def test_the_error_is_the_spread_over_draws_and_the_bias_is_gone(wrong: float, exact: bool) -> None:
    value, error, unbiased, _, truth = estimates(wrong, exact, 30, 400, seed=5).T
    z = (unbiased - truth) / error
    assert value.std() == pytest.approx(error.mean(), rel=0.4)  # 30 draws know a deviation to 13 %; 3 of those
    assert abs(z.mean()) < 0.15 + 3 / math.sqrt(30) and 0.6 < z.std() < 1.4  # value and error rise together: -0.15
    assert wrong > 1 or (value - truth).mean() > 5 * value.std() / math.sqrt(30)  # there was a bias to take off


def test_few_samples_have_an_error_and_no_unbiased_value() -> None:
    found = frechet_estimate(seeded_normal("a", (60, 30)), seeded_normal("b", (200, 30)))
    assert found.value == pytest.approx(frechet_distance(seeded_normal("a", (60, 30)), seeded_normal("b", (200, 30))))
    assert found.standard_error > 0 and math.isnan(found.unbiased) and math.isnan(found.unbiased_error)
    x = seeded_normal("a", (100, 20))
    x[:, 5] = 1.0  # a feature that says nothing
    for reference in (x.flip(0) * 1.1, seeded_normal("b", (100, 20))):
        assert math.isfinite(frechet_estimate(x, reference).unbiased)


MEANS, DEVIATIONS = 0.5 * seeded_normal("means", (4, 16)), torch.tensor([0.7, 0.8, 0.9, 1.0])
MIXTURE = GaussianMixture(MEANS, DEVIATIONS.double(), torch.ones(4).double())


def drawn(n: int, wrong: float, seed: int) -> Tensor:
    """Samples of the mixture, whose components have deviations `wrong` times too large."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(MIXTURE.weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    return MIXTURE.means[which] + wrong * DEVIATIONS.double()[which, None] * noise


def exact_moments() -> Moments:
    centred = MEANS - MEANS.mean(0)
    spread = centred.T @ centred / 4 + (DEVIATIONS.double() ** 2).mean() * torch.eye(16)
    return Moments.given(MEANS.mean(0).numpy(), spread.numpy())


def test_an_exact_sampler_of_a_mixture_has_no_distance_and_two_per_cent_of_deviation_are_seen() -> None:
    n, exact = 20_000, exact_moments()
    right, wrong = frechet_estimate(drawn(n, 1, 0), exact), frechet_estimate(drawn(n, 1.02, 1), exact)
    assert abs(right.unbiased) < 3 * right.unbiased_error
    assert wrong.unbiased > 4 * wrong.unbiased_error


@pytest.mark.slow
def test_the_line_in_1_over_n_ends_at_the_truth() -> None:
    found = [frechet_at_infinity(drawn(10_000, 1, seed), exact_moments(), seed) for seed in range(20)]
    value, error = np.array(found).T
    assert abs((value / error).mean()) < 3 / math.sqrt(20) and 0.5 < (value / error).std() < 1.5
    assert frechet_distance(drawn(10_000, 1, 0), exact_moments()) > 3 * abs(value.mean())
