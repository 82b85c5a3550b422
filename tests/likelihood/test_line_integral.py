"""Likelihoods on a path with a noise level for each dimension: the flow's, and the bound as a line integral."""

import math

import pytest
import torch
from correlated import Correlated, diffusion_loss
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import Exact, GaussianDecoder, elbo, log_likelihood, vlb
from scorefield.models.analytic import Gaussian
from scorefield.sde_lib import FrozenVP, MultivariateVP, PerDimensionVP
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.solvers import RK4, PerSampleNoise, grids

LOW, HIGH = -5.0, 13.3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paths(batch: int = 1, high: float = HIGH) -> list[PerDimensionVP]:
    """Three ways between the same ends in two dimensions: the line, and two on which one dimension is first."""
    ways = [
        ((0.0, 0.0), (0.0, 0.0), (1.0, 1.0)),
        ((2.0, 0.0), (0.0, -0.9), (0.1, 1.0)),
        ((0.0, 3.0), (-0.9, 0.0), (1.0, 0.1)),
    ]
    return [PerDimensionVP(*(torch.tensor(w).double().expand(batch, 2) for w in way), LOW, high) for way in ways]


def closed_form(covariance: Tensor) -> float:
    """1/2 log det (1 + e^lambda C), between the ends: the integral of the exact denoiser's error."""
    high, low = (torch.logdet(torch.eye(2) + math.exp(end) * covariance) for end in (HIGH, LOW))
    return float(high - low) / 2


COVARIANCE = torch.tensor([[1.0, 0.57], [0.57, 0.4]]).double()


@pytest.mark.parametrize("covariance", [COVARIANCE, COVARIANCE.diag().diag()], ids=["correlated", "independent"])
def test_the_way_does_not_count_where_the_denoiser_is_exact(covariance: Tensor) -> None:
    # The exact error is the gradient of the mutual information (Palomar and Verdu 2006): independent dimensions or not.
    values = [diffusion_loss(Correlated(covariance), path) for path in paths()]
    assert_close(values, [closed_form(covariance)] * 3, rtol=0, atol=1e-8)


def test_the_way_counts_where_the_field_is_not_conservative() -> None:
    line, *others = (diffusion_loss(Correlated(COVARIANCE, mean_only=True), path) for path in paths())
    assert line == pytest.approx(closed_form(COVARIANCE), abs=1e-8)  # where both levels are equal, the mean is exact
    assert min(abs(value - line) for value in others) > 0.1


def test_a_density_of_times_changes_the_draws_and_not_their_mean() -> None:
    model, path, batch = Correlated(COVARIANCE), paths(3000)[1], 3000
    density = LevelDensity(torch.tensor([0.4, 0.3, 0.2, 0.1]).double())
    x0, means = random(batch, 2) @ torch.linalg.cholesky(COVARIANCE).T, []
    for sde in (path, FrozenVP("linear", LOW, HIGH)):
        for chosen in (None, density):
            noise = PerSampleNoise(0, range(batch))
            settings = {"draws": 4, "decodings": 1, "noise": noise, "uniform": noise.uniform, "density": chosen}
            denoiser = model if sde is path else model.one_level
            diffusion = elbo(denoiser, sde, x0, decoder=GaussianDecoder(), **settings).parts["diffusion"]
            means.append(diffusion.mean())
            error = float(diffusion.std()) / batch**0.5
            assert abs(float(means[-1]) + closed_form(COVARIANCE)) < 4 * error  # a false alarm in 16,000
    assert len({round(float(mean), 6) for mean in means}) == 4


@pytest.mark.parametrize("mean_only", [False, True])
def test_the_bounds_diffusion_is_that_line_integral(mean_only: bool) -> None:
    model, batch = Correlated(COVARIANCE, mean_only), 3000
    path = paths(batch)[1]
    x0 = random(batch, 2) @ torch.linalg.cholesky(COVARIANCE).T
    noise = PerSampleNoise(0, range(batch))
    bound = elbo(model, path, x0, decoder=GaussianDecoder(), draws=8, decodings=1, noise=noise, uniform=noise.uniform)
    mean, error = bound.parts["diffusion"].mean(), bound.parts["diffusion"].std() / batch**0.5
    expected = -diffusion_loss(model, paths()[1])
    assert abs(float(mean) - expected) < 4 * float(error)  # a false alarm in 16,000
    assert float(error) < 0.02 * abs(expected)


def test_the_flows_log_likelihood_is_exact_for_dimensions_of_their_own_levels() -> None:
    model = Gaussian(torch.tensor([0.1, -0.3]).double(), torch.tensor([0.5, 1.3]).double())
    path, x = paths(3, high=5.0)[1], random(3, 2)
    alpha, sigma = path.scales(1.0)
    density = log_likelihood(
        model, path, x, divergence=Exact(), solver=RK4(), ts=grids.uniform(path, 40).flip(0),
        prior_log_prob=lambda z: model.log_prob(z, alpha, sigma),
    )  # fmt: skip
    exact = model.log_prob(x, *path.scales(0.0))
    assert_close(density.log_prob, exact, rtol=0, atol=1e-4)  # a 16th of that with twice the steps
    normal = log_likelihood(model, path, x, divergence=Exact(), solver=RK4(), ts=grids.uniform(path, 40).flip(0))
    expected = density.log_prob - model.log_prob(normal.latent, alpha, sigma) + path.prior_log_prob(normal.latent)
    assert_close(normal.log_prob, expected)


def test_codes_that_say_nothing_give_the_bound_of_one_level() -> None:
    model = Gaussian(torch.tensor([0.1, -0.3]).double(), torch.tensor([0.5, 1.3]).double())
    family = MultivariateVP((2,), size=6, active=3, width=4).double()
    for weight in family.encoder.parameters():
        torch.nn.init.zeros_(weight)
    x0 = random(5, 2)

    def uniform(like: Tensor) -> Tensor:
        return torch.full_like(like, 0.3)

    bounds = [
        elbo(denoiser, sde, x0, decoder=GaussianDecoder(), noise=PerSampleNoise(0, range(5)), uniform=uniform)
        for denoiser, sde in ((lambda x, a, s, code: model(x, a, s), family), (model, FrozenVP("linear")))
    ]
    assert bounds[0].parts.keys() == {"prior", "diffusion", "reconstruction", "code"}
    assert_close(bounds[0].log_prob, bounds[1].log_prob, rtol=0, atol=1e-9)
    assert_close(bounds[0].parts["code"], torch.zeros(5).double())


def test_the_code_costs_its_divergence() -> None:
    family = MultivariateVP((2,), size=6, active=3, width=4).double()
    x0 = random(5, 2)
    noise = PerSampleNoise(0, range(5))
    bound = elbo(
        lambda x, a, s, code: torch.zeros_like(x), family, x0, decoder=GaussianDecoder(), noise=noise,
        uniform=noise.uniform,
    )  # fmt: skip
    assert_close(bound.parts["code"], -family.infer(x0)[1])
    assert_close(bound.log_prob, torch.stack(list(bound.parts.values())).sum(0))


def test_a_chain_and_a_tolerance_refuse_by_one_sentence() -> None:
    path, x = paths(3)[0], random(3, 2)
    model = Correlated(COVARIANCE)
    for call, message in (
        (lambda: vlb(model, path, x, steps=5, decoder=GaussianDecoder()), "a chain of steps.*use elbo in continuous"),
        (lambda: elbo(model, path, x, steps=5, decoder=GaussianDecoder()), "a chain of steps, got PerDimensionVP"),
        (lambda: log_likelihood(model, path, x, tolerance=0.1), "for a tolerance.*pass solver=RK4"),
        (lambda: log_likelihood(model, path, x), "for Adaptive.*got PerDimensionVP: use Euler"),
        (lambda: log_likelihood(model, MultivariateVP((2,)), x), "pass sde.given"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
