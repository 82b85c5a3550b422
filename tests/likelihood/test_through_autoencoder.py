"""The bound of an image through an autoencoder, on linear-Gaussian models where all terms are known."""

import math
from collections.abc import Callable

import pytest
import torch
from linear_autoencoder import BATCH, CODES, PIXELS, LinearAutoencoder
from torch import Tensor

from scorefield.likelihood import Density, Exact, dsm_bound, log_likelihood
from scorefield.likelihood.through_autoencoder import image_bound
from scorefield.models.analytic import Gaussian
from scorefield.models.moments import Moments
from scorefield.sde_lib import VPSDE
from scorefield.solvers import AdamsMoulton, PerSampleNoise, grids


def exactly(model: LinearAutoencoder) -> Callable[[Tensor], Density]:
    prior = model.prior()
    return lambda z: Density(prior.log_prob(z), None, 0.0, None)


def test_each_draw_gives_the_exact_likelihood_where_q_is_the_posterior() -> None:
    """p(x | z) p(z) / p(z | x) = p(x) for every z, so each of the draws is exact, and the bound is tight."""
    model = LinearAutoencoder()
    terms = image_bound(model, PIXELS, model.x0, exactly(model), draws=3, noise=PerSampleNoise(0, range(BATCH)))
    torch.testing.assert_close(terms.log_weights, model.log_prob().expand(3, BATCH), rtol=0, atol=1e-9)
    torch.testing.assert_close(terms.importance_bound(), model.log_prob(), rtol=0, atol=1e-9)
    expected = model.var.log().sum() / 2 + CODES * (1 + math.log(2 * math.pi)) / 2  # the entropy of q
    assert terms.encoder.shape == (3, BATCH)
    assert float(terms.encoder.mean()) == pytest.approx(float(expected), abs=1.0)


@pytest.mark.parametrize("spread", [0.6, 1.4])
def test_the_bound_of_another_q_is_below_by_the_divergence_and_more_draws_close_it(spread: float) -> None:
    model, copies = LinearAutoencoder(spread), 500
    x0, exact = model.x0.repeat(copies, 1, 1, 1), model.log_prob().repeat(copies)
    terms = image_bound(model, PIXELS, x0, exactly(model), draws=8, noise=PerSampleNoise(0, range(len(x0))))
    lost = exact - terms.bound()
    assert abs(float(lost.mean()) - model.gap()) < 4 * float(lost.std()) / len(lost) ** 0.5  # 1 in 16,000
    assert float((exact - terms.importance_bound()).mean()) < 0.5 * model.gap()
    assert bool((terms.importance_bound() >= terms.bound()).all())


def test_the_flow_of_an_exact_denoiser_gives_the_same_as_the_closed_form() -> None:
    model, sde = LinearAutoencoder(), VPSDE()
    ts = grids.log_snr(sde, 60).flip(0)

    def by_flow(z: Tensor) -> Density:
        return log_likelihood(model.prior(), sde, z, divergence=Exact(), solver=AdamsMoulton(), ts=ts)

    terms = image_bound(model, PIXELS, model.x0, by_flow, draws=2, noise=PerSampleNoise(0, range(BATCH)))
    # N(alpha m, alpha^2 s^2 + sigma^2) at t_min and N(0, 1) for p_T are within 1e-3 of the exact ones here
    torch.testing.assert_close(terms.log_weights, model.log_prob().expand(2, BATCH), rtol=0, atol=5e-3)


def test_a_bound_of_the_codes_is_a_bound_of_the_image() -> None:
    model, sde = LinearAutoencoder(), VPSDE()
    noise = PerSampleNoise(1, range(BATCH))

    def by_bound(z: Tensor) -> Density:
        return dsm_bound(model.prior(), sde, z, draws=32, noise=noise, uniform=noise.uniform)

    terms = image_bound(model, PIXELS, model.x0, by_bound, draws=8, noise=PerSampleNoise(0, range(BATCH)))
    lost = model.log_prob() - terms.bound()
    error = terms.log_weights.std(0) / 8**0.5
    assert bool((lost.abs() < 4 * error + 0.02).all())  # the exact denoiser's bound is tight but for t_min
    assert float(error.max()) < 2.5  # of 8 draws and a log-SNR of 23 to cover


def test_scaled_coordinates_of_both_densities_cancel() -> None:
    """z' = 3 (z - 1): log q and log p(z) both change by -2 log 3, and the bound does not."""
    model = LinearAutoencoder(0.7)

    class Scaled(LinearAutoencoder):
        def moments(self, images: Tensor) -> Moments:
            own = super().moments(images)
            assert own.log_var is not None
            return Moments(3 * (own.mean - 1), own.log_var + 2 * math.log(3))

        def decode(self, z: Tensor) -> Tensor:
            return super().decode(z / 3 + 1)

    prior = Gaussian((3 * (model.m - 1)).reshape(CODES, 1, 1), (3 * model.s).reshape(CODES, 1, 1))
    seen = [
        image_bound(each, PIXELS, model.x0, log_prior, draws=2, noise=PerSampleNoise(0, range(BATCH)))
        for each, log_prior in (
            (model, exactly(model)), (Scaled(0.7), lambda z: Density(prior.log_prob(z), None, 0.0, None)),
        )
    ]  # fmt: skip
    torch.testing.assert_close(seen[0].log_weights, seen[1].log_weights)
    shift = torch.full((2, BATCH), 2 * math.log(3), dtype=torch.float64)
    torch.testing.assert_close(seen[1].encoder - seen[0].encoder, shift)


def test_codes_without_a_density_and_counts_below_one_are_refused() -> None:
    model = LinearAutoencoder()

    class Deterministic(LinearAutoencoder):
        def moments(self, images: Tensor) -> Moments:
            return Moments(super().moments(images).mean, None)

    with pytest.raises(ValueError, match="is infinite, and there is no bound: take the run of a KL autoencoder"):
        image_bound(Deterministic(), PIXELS, model.x0, exactly(model))
    with pytest.raises(ValueError, match="expected draws of 1 or more, got 0"):
        image_bound(model, PIXELS, model.x0, exactly(model), draws=0)
