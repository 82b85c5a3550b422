"""From integers to densities, and the prior of the latents, against exact masses and closed forms."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PATHS
from torch import Tensor

from scorefield.likelihood import (
    Dequantisation,
    GaussianPrior,
    Moments,
    TruncatedNormal,
    Uniform,
    Variational,
    prior_kl,
)
from scorefield.likelihood import prior as prior_module
from scorefield.likelihood.dequantisation import effective_draws, importance_bound
from scorefield.models.analytic import Gaussian
from scorefield.sde_lib import SDE, VESDE, VPSDE, RectifiedSDE
from scorefield.sde_lib.quantise import cell_centres, quantise

COARSE = VPSDE(t_min=0.01)  # its noise at t_min, 0.03, is a sixth of a cell of 8 levels in [-1, 1]


def seeded(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.rand(x.shape, generator=generator, dtype=x.dtype)


def squeezed(centre: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """U = uniform^2, whose density is 1 / (2 sqrt(u))."""
    return uniform**2, -(2 * uniform).log().flatten(1).sum(1)


EVERY: dict[str, Dequantisation] = {
    "uniform": Uniform(),
    "truncated normal": TruncatedNormal(),
    "variational": Variational(squeezed),
}
every = pytest.mark.parametrize("how", EVERY.values(), ids=EVERY)


# Dequantisation


@pytest.mark.parametrize(
    ("how", "sde"),
    [
        (Uniform(), COARSE),
        (Variational(squeezed), COARSE),
        (TruncatedNormal(), COARSE),
        (TruncatedNormal(), RectifiedSDE(t_min=0.1)),
    ],
    ids=("uniform", "variational", "truncated normal", "truncated normal on rectified"),
)
def test_q_is_a_density_of_the_cell(how: Dequantisation, sde: SDE) -> None:
    # E_q[1 / q] is the length of what q covers, and a histogram of the draws is q: 5 and 6 standard errors, one false
    # alarm in two million.
    k = torch.full((200_000, 1), 3)
    x, log_q = how(k, 8, sde, seeded())
    alpha = float(sde.scales(sde.t_min)[0]) if isinstance(how, TruncatedNormal) else 1.0
    inside = alpha * torch.tensor([-1 + 3 / 4, -1 + 4 / 4])
    assert torch.equal(quantise(x, 8, low=-alpha, high=alpha), k)
    lengths = (-log_q).exp()
    # a narrow q is drawn too seldom in its tails: there, only the histogram is compared
    if float(lengths.std()) < 10:
        error = float(lengths.std()) / len(lengths) ** 0.5
        assert abs(float(lengths.mean()) - alpha / 4) < 5 * error + 1e-6
    counts, edges = np.histogram(x.double().numpy(), 50, range=(float(inside[0]), float(inside[1])))
    nearest = np.clip(np.digitize(x[:, 0].numpy(), edges) - 1, 0, 49)
    for bin_ in np.flatnonzero(counts > 500):
        here = log_q.numpy()[nearest == bin_]
        # within a bin q may fall by half: its mean of 1 / q is that of an area, to the share that the bin's width sets
        mass = counts[bin_] / len(x)
        expected = (edges[1] - edges[0]) / np.mean(np.exp(-here))
        assert abs(mass - expected) < 6 * math.sqrt(mass / len(x)) + 2e-3 * mass


@every
def test_importance_weights_close_the_gap_to_the_probability(how: Dequantisation) -> None:
    # The oracle is the mass of each cell of a Gaussian at t_min, by erf. 4 dimensions, so that weights are mild; the
    # mean of the weights is P(k) itself, within 5 standard errors over 4,000 draws.
    mean, std = 0.1, 0.35
    sde, k = VPSDE(t_min=0.05), torch.tensor([[1, 3, 4, 6]])
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_min))
    wide = alpha if isinstance(how, TruncatedNormal) else 1.0
    marginal = torch.distributions.Normal(alpha * mean, math.hypot(alpha * std, sigma))
    ends = torch.stack([-1 + k / 4, -1 + (k + 1) / 4]).double() * wide
    exact = float(marginal.cdf(ends).diff(dim=0).log().sum())
    x, log_q = how(k.expand(4000, 4), 8, sde, seeded())
    log_weights = marginal.log_prob(x.double()).sum(1) - log_q
    weights = (log_weights - exact).exp()
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / 4000**0.5 + 1e-4
    single, eight = (float(importance_bound(log_weights.reshape(m, -1)).mean()) for m in (1, 8))
    assert single < eight <= exact + 0.02
    assert exact - eight < (exact - single) / 3


def test_the_bound_of_many_draws_is_the_mean_weights_logarithm() -> None:
    # The sum's logarithm less log K: without that, 20 draws of 3072 pixels would seem 0.0014 bits/dim better.
    log_weights = torch.tensor([[0.0, -5.0], [math.log(3.0), -5.0]], dtype=torch.float64)
    torch.testing.assert_close(importance_bound(log_weights), torch.tensor([math.log(2.0), -5.0], dtype=torch.float64))
    # Where p is q's own normal, every weight is the mass of the cell, whatever their number.
    k, sde = torch.tensor([[2, 5]]), RectifiedSDE(t_min=0.1)
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_min))
    model = torch.distributions.Normal(alpha * cell_centres(k, 8).double(), sigma)
    exact = 2 * math.log(math.erf(alpha / 8 / sigma / math.sqrt(2)))
    source = seeded()
    draws = [TruncatedNormal(20)(k, 8, sde, source) for _ in range(20)]
    bound = importance_bound(torch.stack([model.log_prob(x.double()).sum(1) - log_q for x, log_q in draws]))
    assert float(bound) == pytest.approx(exact, abs=1e-5)  # x is float32


def test_a_narrow_q_on_wide_cells_says_what_it_loses_and_uniform_loses_little() -> None:
    # A wide Gaussian is nearly flat in a cell 12 noises wide: the loss of one draw is log(2 r) - log(2 pi e) / 2.
    sde, k, std = VESDE(sigma_min=0.01), torch.full((400, 4), 8), 1.0
    ends = torch.tensor([-1 + 16 / 17, -1 + 18 / 17], dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), math.hypot(std, 0.01))
    exact = 4 * float(normal.cdf(ends).diff().log())

    def weights(how: Dequantisation, draws: int) -> Tensor:
        source = seeded()
        each = [how(k, 17, sde, source, low=-1.0, high=1.0) for _ in range(draws)]
        return torch.stack([normal.log_prob(x.double()).sum(1) - log_q for x, log_q in each])

    with pytest.warns(UserWarning, match=r"the noise at t_min, 0.01, is small for a cell 0.12 wide: .* 1.05 nats"):
        narrow = weights(TruncatedNormal(), 8)
    one = (exact - float(narrow[0].mean())) / 4
    # E of -log weight: 5 standard errors of chi-squared halves over 1,600 numbers.
    assert one == pytest.approx(math.log(2 / 17 / 0.01) - math.log(2 * math.pi * math.e) / 2, abs=5 * 0.71 / 40)
    with pytest.warns(UserWarning, match="the 8 draws of dequantisation are worth .* equal ones"):
        loss = exact - float(importance_bound(narrow).mean())
    assert 1.0 < loss < 4 * one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert abs(exact - float(importance_bound(weights(Uniform(), 8)).mean())) < 0.01


def test_effective_draws_count_equal_weights() -> None:
    log_weights = torch.tensor([[0.0, 0.0, -50.0], [0.0, -math.inf, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(effective_draws(log_weights), torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))


def test_the_centres_are_the_middles() -> None:
    np.testing.assert_allclose(cell_centres(torch.tensor([[0, 1, 2, 3]]), 4), [[-0.75, -0.25, 0.25, 0.75]])
    assert cell_centres(torch.zeros(0, 3, dtype=torch.long), 4).shape == (0, 3)


@every
def test_zero_images_are_dequantised(how: Dequantisation) -> None:
    x, log_q = how(torch.zeros(0, 1, 4, 4, dtype=torch.long), 8, COARSE, seeded())
    assert x.shape == (0, 1, 4, 4)
    assert log_q.shape == (0,)


def test_samples_below_one_are_refused() -> None:
    for make in (Uniform, TruncatedNormal):
        with pytest.raises(ValueError, match="samples of 1 or more"):
            make(samples=0)


# The prior


def test_a_matched_prior_is_a_gaussians_marginal() -> None:
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 2.0]).double()
    model = Gaussian(mean, std)
    for sde in PATHS.values():
        z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        result = GaussianPrior.matched(sde, Moments(mean, std))(z)
        torch.testing.assert_close(result, model.log_prob(z, *sde.scales(sde.t_max)))
        torch.testing.assert_close(GaussianPrior.standard(sde)(z), sde.prior_log_prob(z))


def test_the_mismatch_of_gaussian_data_is_its_kl() -> None:
    # Correlated data of known moments: the KL of two normals in closed form, by torch.
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T @ root.T + 0.7
    sde = VPSDE(beta_max=3.0)
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
    there = torch.distributions.MultivariateNormal(
        torch.full((2,), alpha * 0.7).double(), alpha**2 * root @ root.T + sigma**2 * torch.eye(2).double()
    )
    prior = GaussianPrior.standard(sde)
    target = torch.distributions.MultivariateNormal(torch.zeros(2).double(), sigma**2 * torch.eye(2).double())
    exact = float(torch.distributions.kl_divergence(there, target))
    assert prior_kl(sde, x, prior) == pytest.approx(exact, rel=1e-6)
    matched = prior_kl(sde, x, GaussianPrior.matched(sde, Moments.of(x)))
    assert 0 < matched < exact / 2  # the remainder comes from the correlation
    assert float(sde.prior_kl(x).mean()) >= exact


@pytest.mark.parametrize("full_up_to", [4096, 2])
def test_moments_and_mismatch_of_batches_are_those_of_all_samples(
    full_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from zero, where a difference of squares would lose the deviation; a group is of two batches or more."""
    monkeypatch.setattr(prior_module, "FULL_COVARIANCE_DIMS", full_up_to)
    monkeypatch.setattr(prior_module, "GROUP", 16)
    x = 1e5 + torch.randn(50, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cumsum(1)
    moments = Moments.of(x.split(9))
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.std, x.std(0, unbiased=False), rtol=1e-9, atol=0)
    sde = VPSDE(beta_max=3.0)
    prior = GaussianPrior.matched(sde, Moments(moments.mean + 0.3, moments.std))
    whole = prior_kl(sde, x, prior)
    assert prior_kl(sde, iter(x.split(9)), prior) == pytest.approx(whole, rel=1e-9)
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
    covariance = alpha**2 * torch.cov(x.flatten(1).T, correction=0) + sigma**2 * torch.eye(3).double()
    covariance = covariance if full_up_to > 3 else covariance.diag().diag()
    there = torch.distributions.MultivariateNormal(alpha * x.mean(0).flatten(), covariance)
    target = torch.distributions.MultivariateNormal(prior.mean.flatten(), prior.std.flatten().square().diag())
    assert whole == pytest.approx(float(torch.distributions.kl_divergence(there, target)), rel=1e-6)
