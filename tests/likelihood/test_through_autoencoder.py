"""The bound of an image through an autoencoder, on linear-Gaussian models where all terms are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scorefield.likelihood import Density, Exact, dsm_bound, log_likelihood
from scorefield.likelihood.pixels import PixelDistribution
from scorefield.likelihood.through_autoencoder import image_bound
from scorefield.models.analytic import Gaussian
from scorefield.models.moments import Moments
from scorefield.sde_lib import VPSDE
from scorefield.solvers import AdamsMoulton, PerSampleNoise, grids

SIDE, CODES, NOISE, BATCH = 3, 2, 0.3, 5  # images (1, 3, 3), codes (2, 1, 1), the deviation of p(x | z)


class Linear:
    """X = W z + b + 0.3 eps, z ~ N(m, s^2), with orthogonal columns of W, so that p(z | x) is diagonal.

    `spread` multiplies the deviation of the encoder's q(z | x): at 1, q is the exact p(z | x).
    """

    def __init__(self, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        columns = torch.linalg.qr(torch.randn(SIDE**2, CODES, generator=generator, dtype=torch.float64)).Q
        self.w, self.b = (
            columns * torch.tensor([2.0, 0.5], dtype=torch.float64),
            torch.linspace(-1, 1, SIDE**2).double(),
        )
        self.m, self.s = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.8, 1.3], dtype=torch.float64)
        self.spread = spread
        x = torch.randn(BATCH, SIDE**2, generator=generator, dtype=torch.float64)
        self.x0 = x.reshape(BATCH, 1, SIDE, SIDE)
        precision = 1 / self.s.square() + self.w.square().sum(0) / NOISE**2
        self.var = 1 / precision

    def posterior(self, images: Tensor) -> Tensor:
        pulled = (images.flatten(1) - self.b) @ self.w / NOISE**2 + self.m / self.s.square()
        return pulled * self.var

    def moments(self, images: Tensor) -> Moments:
        mean = self.posterior(images)
        log_var = (self.var * self.spread**2).log().expand_as(mean)
        return Moments(mean[..., None, None], log_var[..., None, None])

    def decode(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.w.T + self.b).reshape(-1, 1, SIDE, SIDE)

    def prior(self) -> Gaussian:
        return Gaussian(self.m.reshape(CODES, 1, 1), self.s.reshape(CODES, 1, 1))

    def log_prob(self) -> Tensor:
        """The exact log p(x0), of N(W m + b, W s^2 W' + 0.09)."""
        covariance = (self.w * self.s.square()) @ self.w.T + NOISE**2 * torch.eye(SIDE**2).double()
        model = torch.distributions.MultivariateNormal(self.w @ self.m + self.b, covariance)
        return model.log_prob(self.x0.flatten(1))

    def gap(self) -> float:
        """KL(q(z | x) || p(z | x)) of two normals of one mean."""
        return CODES * ((self.spread**2 - 1) / 2 - math.log(self.spread))


PIXELS = PixelDistribution("normal", torch.tensor([[NOISE]], dtype=torch.float64), None)


def exactly(model: Linear) -> Callable[[Tensor], Density]:
    prior = model.prior()
    return lambda z: Density(prior.log_prob(z), None, 0.0, None)


def test_each_draw_gives_the_exact_likelihood_where_q_is_the_posterior() -> None:
    """p(x | z) p(z) / p(z | x) = p(x) for every z, so each of the draws is exact, and the bound is tight."""
    model = Linear()
    terms = image_bound(model, PIXELS, model.x0, exactly(model), draws=3, noise=PerSampleNoise(0, range(BATCH)))
    torch.testing.assert_close(terms.log_weights, model.log_prob().expand(3, BATCH), rtol=0, atol=1e-9)
    torch.testing.assert_close(terms.importance_bound(), model.log_prob(), rtol=0, atol=1e-9)
    expected = model.var.log().sum() / 2 + CODES * (1 + math.log(2 * math.pi)) / 2  # the entropy of q
    assert terms.encoder.shape == (3, BATCH)
    assert float(terms.encoder.mean()) == pytest.approx(float(expected), abs=1.0)


@pytest.mark.parametrize("spread", [0.6, 1.4])
def test_the_bound_of_another_q_is_below_by_the_divergence_and_more_draws_close_it(spread: float) -> None:
    model, copies = Linear(spread), 500
    x0, exact = model.x0.repeat(copies, 1, 1, 1), model.log_prob().repeat(copies)
    terms = image_bound(model, PIXELS, x0, exactly(model), draws=8, noise=PerSampleNoise(0, range(len(x0))))
    lost = exact - terms.bound()
    assert abs(float(lost.mean()) - model.gap()) < 4 * float(lost.std()) / len(lost) ** 0.5  # 1 in 16,000
    assert float((exact - terms.importance_bound()).mean()) < 0.5 * model.gap()
    assert bool((terms.importance_bound() >= terms.bound()).all())


def test_the_flow_of_an_exact_denoiser_gives_the_same_as_the_closed_form() -> None:
    model, sde = Linear(), VPSDE()
    ts = grids.log_snr(sde, 60).flip(0)

    def by_flow(z: Tensor) -> Density:
        return log_likelihood(model.prior(), sde, z, divergence=Exact(), solver=AdamsMoulton(), ts=ts)

    terms = image_bound(model, PIXELS, model.x0, by_flow, draws=2, noise=PerSampleNoise(0, range(BATCH)))
    # N(alpha m, alpha^2 s^2 + sigma^2) at t_min and N(0, 1) for p_T are within 1e-3 of the exact ones here
    torch.testing.assert_close(terms.log_weights, model.log_prob().expand(2, BATCH), rtol=0, atol=5e-3)


def test_a_bound_of_the_codes_is_a_bound_of_the_image() -> None:
    model, sde = Linear(), VPSDE()
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
    model = Linear(0.7)

    class Scaled(Linear):
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
    model = Linear()

    class Deterministic(Linear):
        def moments(self, images: Tensor) -> Moments:
            return Moments(super().moments(images).mean, None)

    with pytest.raises(ValueError, match="is infinite and there is no bound: take the run of a KL autoencoder"):
        image_bound(Deterministic(), PIXELS, model.x0, exactly(model))
    with pytest.raises(ValueError, match="expected draws of 1 or more, got 0"):
        image_bound(model, PIXELS, model.x0, exactly(model), draws=0)
