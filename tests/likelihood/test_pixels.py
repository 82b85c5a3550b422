"""p(x | z) of pixels: probabilities that sum to one, densities of scipy, and scales of greatest likelihood."""

import math

import pytest
import scipy.stats
import torch

from scorefield.likelihood.pixels import FAMILIES, OUTLIERS, PixelDistribution, fit_pixels
from scorefield.sde_lib.quantise import cell_centres

SCIPY = {"laplace": scipy.stats.laplace, "logistic": scipy.stats.logistic, "normal": scipy.stats.norm}


def draws(family: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(SCIPY[family].rvs(size=shape, random_state=seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
def test_probabilities_of_the_levels_are_those_of_scipy_and_sum_to_one(family: str, scale: float) -> None:
    levels, means = 16, torch.tensor([-1.02, -0.4, 0.0, 0.93], dtype=torch.float64)
    pixels = PixelDistribution(family, torch.tensor([[scale]]).double(), levels)
    x0 = cell_centres(torch.arange(levels), levels).reshape(-1, 1, 1)
    edges = torch.linspace(-1, 1, levels + 1, dtype=torch.float64)
    edges[0], edges[-1] = -math.inf, math.inf
    for mean in means:
        p = pixels.log_prob(x0, mean.expand(levels, 1, 1)).exp()
        cdf = torch.as_tensor(SCIPY[family].cdf(edges.numpy(), float(mean), float(pixels.scale)))
        torch.testing.assert_close(p, (1 - OUTLIERS) * cdf.diff() + OUTLIERS / levels, rtol=1e-9, atol=1e-12)
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_is_that_of_scipy(family: str) -> None:
    x0, mean = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([[0.2], [1.0], [5.0]], dtype=torch.float64)
    own = PixelDistribution(family, scale, None).log_prob(x0, mean)
    theirs = SCIPY[family].logpdf(x0.numpy(), mean.numpy(), scale.reshape(1, 3, 1, 1).numpy()).sum((1, 2, 3))
    torch.testing.assert_close(own, torch.as_tensor(theirs))


def test_each_channel_and_each_bin_of_the_mean_has_its_scale() -> None:
    scale = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    mean = torch.tensor([-0.5, 0.5], dtype=torch.float64).reshape(1, 1, 2).expand(1, 2, 2)
    expected = -(2 * scale).log().sum()
    own = PixelDistribution("laplace", scale, None).log_prob(mean, mean)
    torch.testing.assert_close(own, expected[None])


def test_scales_of_continuous_values_are_the_closed_forms() -> None:
    """The likeliest scale of a Laplace is the mean of |x - mean|, that of a normal its root mean square."""
    mean, residual = torch.zeros(400, 2, 5, dtype=torch.float64), draws("laplace", (400, 2, 5))
    residual[:, 1] *= 0.01
    for family, closed in (("laplace", residual.abs().mean((0, 2))), ("normal", residual.square().mean((0, 2)).sqrt())):
        fitted = fit_pixels(residual, mean, None, bins=1, families=(family,))
        torch.testing.assert_close(fitted.scale[:, 0], closed, rtol=5e-3, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_and_the_scales_of_integers_are_found_again(family: str) -> None:
    """1,200 values in each of 4 cells: the deviation of an estimated log-scale is below 1 / sqrt(1,200) = 0.029."""
    scale = torch.tensor([[0.02, 0.2], [0.1, 0.4]], dtype=torch.float64)
    mean = torch.tensor([-0.6, 0.1], dtype=torch.float64).expand(300, 2, 4, 2)
    k = ((mean + draws(family, (300, 2, 4, 2)) * scale[:, None] + 1) / 2 * 256).floor().clamp(0, 255).long()
    fitted = fit_pixels(cell_centres(k, 256), mean, 256, bins=2)
    assert fitted.family == family
    torch.testing.assert_close(fitted.scale, scale, rtol=0.15, atol=0)  # five deviations


def test_a_bin_with_few_values_takes_the_scale_of_its_channel() -> None:
    mean = torch.cat([torch.full((1000, 1, 1), -0.5), torch.full((150, 1, 1), 0.5)]).double()
    x0 = mean + 0.1 * draws("normal", (1150, 1, 1)) * torch.where(mean > 0, 5.0, 1.0)
    fitted = fit_pixels(x0, mean, None, bins=2, families=("normal",))
    torch.testing.assert_close(fitted.scale[0, 1], (x0 - mean).square().mean().sqrt(), rtol=5e-3, atol=0)
    torch.testing.assert_close(fitted.scale[0, 0], (x0 - mean)[:1000].square().mean().sqrt(), rtol=5e-3, atol=0)


def test_exact_means_give_the_smallest_scale_and_a_surprise_costs_at_most_the_outliers() -> None:
    x0 = cell_centres(torch.full((300, 1, 1), 7), 256)
    fitted = fit_pixels(x0, x0.double(), 256, bins=1)
    assert float(fitted.scale) < 1 / 256
    assert float(fitted.log_prob(x0[:1], x0[:1])) > -2 * OUTLIERS
    surprise = float(fitted.log_prob(cell_centres(torch.full((1, 1, 1), 250), 256), x0[:1]))
    assert surprise == pytest.approx(math.log(OUTLIERS / 256))


def test_a_description_gives_the_distribution_again() -> None:
    pixels = PixelDistribution("logistic", torch.tensor([[0.1, 0.3]], dtype=torch.float64), 256, -1.0, 1.0)
    again = PixelDistribution.read(pixels.described())
    assert again.described() == pixels.described()


def test_another_shape_of_the_mean_is_refused() -> None:
    pixels = PixelDistribution("laplace", torch.ones(1, 1), None)
    with pytest.raises(ValueError, match=r"the autoencoder's decoder to answer in the shape of x, \(2, 1, 4\)"):
        pixels.log_prob(torch.zeros(2, 1, 4), torch.zeros(1, 1, 4))
