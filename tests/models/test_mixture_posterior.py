"""Mixtures with full covariances, and their posteriors given linear measurements: the judge of inverse problems."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from scorefield.models.analytic import GaussianMixture

GENERATOR = torch.Generator().manual_seed(4)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def correlated(shape: tuple[int, ...] = (2, 3), count: int = 2) -> tuple[GaussianMixture, Tensor]:
    """A mixture, and its covariances (K, d, d)."""
    d = math.prod(shape)
    root = draw(count, d, d) / math.sqrt(d)
    covariances = root @ root.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    weights = torch.arange(1.0, count + 1, dtype=torch.float64)
    return GaussianMixture(draw(count, *shape), None, weights, covariances=covariances), covariances


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.8, 0.6), (1.0, 20.0)])
def test_full_covariances_against_torch_distributions(alpha: float, sigma: float) -> None:
    model, covariances = correlated()
    x = alpha * model.sample(5, generator=GENERATOR) + sigma * draw(5, 2, 3)
    x.requires_grad_()
    marginal = alpha**2 * covariances + sigma**2 * torch.eye(6, dtype=torch.float64)
    each = MultivariateNormal(alpha * model.means.flatten(1), marginal)
    expected = (each.log_prob(x.flatten(1).unsqueeze(1)) + model.weights.log()).logsumexp(1)
    assert_close(model.log_prob(x, alpha, sigma), expected, rtol=1e-11, atol=1e-11)
    (score,) = torch.autograd.grad(expected.sum(), x)
    assert_close(model.score(x, alpha, sigma), score, rtol=1e-9, atol=1e-11)
    tweedie = (x + sigma**2 * score) / alpha
    assert_close(model(x, alpha, sigma), tweedie, rtol=1e-9, atol=1e-10)


def test_samples_have_the_full_covariance() -> None:
    model, covariances = correlated(count=1)
    n = 20000
    x = (model.sample(n, generator=torch.Generator().manual_seed(0)) - model.means[0]).flatten(1)
    scale = covariances[0].diagonal().sqrt()
    # The variance of a product of two normals is at most 2 s^2 s'^2: 5.5 errors of 21 numbers, false alarm below 1e-6.
    assert bool((((x.T @ x) / n - covariances[0]) / torch.outer(scale, scale)).abs().max() < 5.5 * math.sqrt(2 / n))


def joint(model: GaussianMixture, covariances: Tensor, a: Tensor, y: Tensor, std: float) -> tuple[Tensor, ...]:
    """Means, covariances, weights and the log evidence by the textbook's joint normal of x0 and y."""
    means = model.means.flatten(1)
    marginal = a @ covariances @ a.T + std**2 * torch.eye(len(a), dtype=torch.float64)
    log_joint = model.weights.log() + MultivariateNormal(means @ a.T, marginal).log_prob(y)
    gain = torch.linalg.solve(marginal, a @ covariances).mT
    after = means + (gain @ (y - means @ a.T).unsqueeze(2)).squeeze(2)
    return after, covariances - gain @ a @ covariances, log_joint.softmax(0), log_joint.logsumexp(0)


@pytest.mark.parametrize("m", [1, 4, 6, 9])
@pytest.mark.parametrize("full", [True, False])
def test_posterior_is_that_of_the_joint_normal(m: int, full: bool) -> None:
    model, covariances = correlated()
    if not full:
        model = GaussianMixture(model.means, draw(2, 2, 3).abs() + 0.1, model.weights)
        covariances = torch.diag_embed(model.stds.flatten(1).square())
    a, y = draw(m, 6), draw(m)
    posterior, evidence = model.posterior(a, y, 0.3)
    means, after, weights, log_evidence = joint(model, covariances, a, y, 0.3)
    assert posterior.basis is not None
    axes = posterior.basis * posterior.stds.flatten(1).unsqueeze(1)
    assert posterior.means.shape == model.means.shape
    for ours, theirs in (
        (posterior.means.flatten(1), means),
        (axes @ axes.mT, after),
        (posterior.weights, weights),
        (evidence, log_evidence),
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    # A posterior of a posterior: both measurements at once.
    more, second = posterior.posterior(a[:1], y[:1] + 0.1, 0.3)
    both, once = model.posterior(torch.cat([a, a[:1]]), torch.cat([y, y[:1] + 0.1]), 0.3)
    assert_close(more.means, both.means, rtol=1e-9, atol=1e-11)
    assert_close(evidence + second, once, rtol=1e-10, atol=1e-11)


def test_posterior_by_quadrature() -> None:
    """Two dimensions, a trapezium rule on a grid of 0.02: exact to rounding for these bells."""
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    covariances = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]], dtype=torch.float64)
    means = torch.tensor([[1.0, -0.5], [-0.7, 0.6]], dtype=torch.float64)
    model = GaussianMixture(means, None, weights, covariances=covariances)
    a, y, std = torch.tensor([[0.6, -1.1]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64), 0.25
    posterior, evidence = model.posterior(a, y, std)
    side = torch.linspace(-6, 6, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    log_likelihood = -(((y - grid @ a.T) / std).square().sum(1)) / 2 - math.log(std * math.sqrt(2 * math.pi))
    density = (model.log_prob(grid) + log_likelihood).exp()
    mass = float(density.sum()) * 0.02**2
    assert float(evidence) == pytest.approx(math.log(mass), abs=1e-9)
    assert_close(posterior.log_prob(grid).exp(), density / mass, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("std", [1e-8, 0.0])
def test_posterior_of_the_least_noise_meets_the_measurement(std: float) -> None:
    model, covariances = correlated()
    a, y = draw(3, 6), draw(3)
    posterior, evidence = model.posterior(a, y, std)
    means, _, _, log_evidence = joint(model, covariances, a, y, std)
    assert_close(posterior.means.flatten(1), means, rtol=1e-9, atol=1e-10)
    assert_close(evidence, log_evidence, rtol=1e-9, atol=0)
    drawn = posterior.sample(20, generator=GENERATOR).flatten(1)
    # Three directions have no spread but the noise's own, through a pseudo-inverse of norm below 10.
    assert_close(drawn @ a.T, y.expand(20, 3), rtol=0, atol=1e-12 + 100 * std)


def test_what_does_not_match_is_refused() -> None:
    model, _ = correlated()
    with pytest.raises(ValueError, match=r"expected a matrix \(m, 6\)"):
        model.posterior(torch.zeros(2, 5), torch.zeros(2), 0.1)
    with pytest.raises(ValueError, match="give std > 0"):
        model.posterior(draw(2, 6)[[0, 0]], torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match=r"expected covariances \(2, 6, 6\)"):
        GaussianMixture(model.means, None, model.weights, covariances=torch.zeros(2, 6))
