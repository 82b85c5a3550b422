"""Posterior denoisers against exact posteriors, on every path."""

import math

import pytest
import torch
from dense import Dense, pixels
from oracles import PATHS
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import Exact, log_likelihood
from scorefield.models import CountCalls
from scorefield.models.analytic import GaussianMixture
from scorefield.models.guidance import (
    DDNM,
    DPS,
    MMPS,
    TMPD,
    DiffPIR,
    InverseProblem,
    JacobianFree,
    PiGDM,
    PosteriorVariance,
)
from scorefield.models.measurements import Function, LinearFunction, Measurement
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.broadcast import Scale, expand
from scorefield.solvers import DDIM, RK4, grids

GENERATOR = torch.Generator().manual_seed(3)
SHAPE, STD = (2, 3), 0.2


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def correlated(count: int) -> GaussianMixture:
    root = draw(count, 6, 6) / 2
    covariances = root @ root.mT + 0.05 * torch.eye(6, dtype=torch.float64)
    return GaussianMixture(draw(count, *SHAPE), None, 1 + torch.arange(count).double(), covariances=covariances)


def independent(*stds: float) -> GaussianMixture:
    spread = torch.tensor(stds, dtype=torch.float64).expand(6) if len(stds) == 1 else torch.tensor(stds).double()
    return GaussianMixture(draw(1, *SHAPE), spread.reshape(1, *SHAPE), torch.ones(1).double())


ONE, TWO, ROUND = correlated(1), correlated(2), independent(0.7)
MATRIX = draw(3, 6)
A = Dense(MATRIX, SHAPE)
X, Y = draw(5, *SHAPE), draw(5, 3)
ALPHA, SIGMA = (torch.tensor(scales, dtype=torch.float64) for scales in ((0.9, 0.3, 1, 0.7, 0.1), (0.4, 0.9, 3, 2, 1)))


def methods(prior: GaussianMixture, a: Measurement, std: float) -> dict[str, InverseProblem]:
    """Each method that takes a measurement of this noise."""
    every: dict[str, InverseProblem] = {
        "pigdm": PiGDM(prior, a, std, data_std=0.7),
        "mmps": MMPS(prior, a, std),
        "mmps-2": MMPS(prior, a, std, iterations=2, tolerance=0.5),
        "dps-scale": DPS(prior, a, std, scale=0.3),
        "dps-spread": DPS(prior, a, std, spread=1.0, data_std=0.7),
        "jacobian_free": JacobianFree(prior, a, std, data_std=0.7),
        "diffpir": DiffPIR(prior, a, std),
        "ddnm": DDNM(prior, a, std),
    }
    return every if std == 0 else every | {"dps": DPS(prior, a, std), "tmpd": TMPD(prior, a, std)}


def exact(prior: GaussianMixture, x: Tensor, alpha: Scale, sigma: Scale, matrix: Tensor = MATRIX) -> Tensor:
    """E[x0 | x, y] for each row of x and Y."""
    posteriors = [prior.posterior(matrix, y, STD)[0] for y in Y]
    return torch.cat([p(row[None], alpha, sigma) for p, row in zip(posteriors, x, strict=True)])


@pytest.mark.parametrize("path", PATHS)
def test_mmps_is_the_posterior_of_any_gaussian_and_pigdm_of_a_round_one(path: str) -> None:
    sde = PATHS[path]
    for share in (0.02, 0.5, 0.98):
        alpha, sigma = sde.scales(torch.tensor(share * sde.t_max, dtype=torch.float64))
        for prior, method in (
            (ONE, MMPS(ONE, A, STD, iterations=3)),
            (ROUND, PiGDM(ROUND, A, STD, data_std=0.7)),
            (ROUND, JacobianFree(ROUND, A, STD, data_std=0.7)),
        ):
            x = alpha * prior.sample(5, generator=GENERATOR) + sigma * draw(5, *SHAPE)
            assert_close(method(x, alpha, sigma, y=Y), exact(prior, x, alpha, sigma), rtol=1e-10, atol=1e-10)


def test_iterations_of_mmps_end_where_the_system_is_solved() -> None:
    """Independent coordinates of two variances: the Krylov space has two dimensions for six measured values."""
    prior, identity = independent(0.3, 0.3, 0.9, 0.9, 0.9, 0.3), torch.eye(6, dtype=torch.float64)
    y, counted = draw(5, 6), CountCalls(prior)
    posterior = (prior.posterior(identity, row, STD)[0] for row in y)
    expected = torch.cat([p(X[i : i + 1], 0.8, 0.6) for i, p in enumerate(posterior)])
    method = MMPS(counted, Dense(identity, SHAPE), STD, iterations=5, tolerance=1e-8)
    assert_close(method(X, 0.8, 0.6, y=y), expected, rtol=1e-10, atol=1e-10)
    assert (counted.samples, counted.vjps) == (5, 10)


def test_one_iteration_of_mmps_leaves_the_least_residual() -> None:
    gain = (MMPS(ONE, A, STD, iterations=1)(X, 0.8, 0.6, y=Y) - ONE(X, 0.8, 0.6)).flatten(1)
    covariance = posterior_covariance(ONE, 0.8, 0.6)
    r = Y - A(ONE(X, 0.8, 0.6))
    image = r @ (MATRIX @ covariance @ MATRIX.T + STD**2 * torch.eye(3, dtype=torch.float64))
    step = (r * image).sum(1, keepdim=True) / image.square().sum(1, keepdim=True)
    assert_close(gain, step * r @ MATRIX @ covariance, rtol=1e-10, atol=1e-12)


def posterior_covariance(prior: GaussianMixture, alpha: float, sigma: float) -> Tensor:
    """Cov[x0 | x] of a Gaussian, by adding precisions."""
    assert prior.basis is not None
    basis, variance = prior.basis[0], prior.stds[0].flatten().square()
    return basis @ torch.diag(1 / (1 / variance + alpha**2 / sigma**2)) @ basis.T


def test_gradients_of_dps_and_tmpd_are_their_formulae() -> None:
    """For a Gaussian J = (alpha / sigma^2) Cov, so that D moves by Cov A^T times the weights."""
    alpha, sigma = 0.8, 0.6
    covariance, x0 = posterior_covariance(ONE, alpha, sigma), ONE(X, alpha, sigma)
    r = Y - A(x0)
    r2 = 0.49 * (sigma / alpha) ** 2 / (0.49 + (sigma / alpha) ** 2)
    sums = (MATRIX @ covariance @ MATRIX.T).sum(1)
    rate = 0.3 / (sigma**2 * (1 - math.exp(-0.2)))
    for name, weights in (
        ("dps", r / STD**2),
        ("dps-spread", r / (STD**2 + r2)),
        ("dps-scale", rate * r / r.norm(dim=1, keepdim=True)),
        ("tmpd", r / (STD**2 + sums.clamp(min=0))),
    ):
        moved = methods(ONE, A, STD)[name](X, alpha, sigma, y=Y) - x0
        assert_close(moved.flatten(1), weights @ MATRIX @ covariance, rtol=1e-10, atol=1e-12)


def test_diffpir_minimises_its_objective_and_ddnm_holds_back_noise() -> None:
    alpha, sigma = 0.8, 0.6
    rho2, x0 = (sigma / alpha) ** 2, ONE(X, alpha, sigma)
    normal = MATRIX.T @ MATRIX / STD**2 + 2.0 / rho2 * torch.eye(6, dtype=torch.float64)
    right = Y @ MATRIX / STD**2 + 2.0 / rho2 * x0.flatten(1)
    best = torch.linalg.solve(normal, right.T).T
    assert_close(DiffPIR(ONE, A, STD, lam=2.0)(X, alpha, sigma, y=Y).flatten(1), best, rtol=1e-10, atol=1e-12)
    u, s, v_t = torch.linalg.svd(MATRIX, full_matrices=False)
    for std in (0.01, 4.0):  # all directions are corrected by all of the residual, or none is
        gain = torch.ones(3).double() if std == 0.01 else rho2**0.5 * s / std
        assert bool((gain <= 1).all())
        moved = ((Y - A(x0)) @ u * gain / s) @ v_t
        assert_close((DDNM(ONE, A, std)(X, alpha, sigma, y=Y) - x0).flatten(1), moved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_values_without_noise_are_returned_to_the_bit(dtype: torch.dtype) -> None:
    known = [0, 2, 3]
    truth = draw(5, *SHAPE).to(dtype)
    truth.flatten(1)[:, [1, 4, 5]] = float("nan")  # what is hidden has no influence
    y, x = truth.flatten(1)[:, known], X.to(dtype)
    for name, method in methods(TWO, pixels(SHAPE, known), 0.0).items():
        x0 = method(x, ALPHA, SIGMA, y=y)
        assert torch.equal(x0.flatten(1)[:, known], y), name
        assert bool(torch.isfinite(x0).all()), name
        assert x0.dtype == dtype


def test_a_value_that_is_measured_twice_without_noise_is_no_harm() -> None:
    twice = Dense(torch.stack([MATRIX[0], MATRIX[1], MATRIX[0] + MATRIX[1]]), SHAPE)
    y = torch.stack([Y[:, 0], Y[:, 1], Y[:, 0] + Y[:, 1]], 1)
    for method in (PiGDM(TWO, twice, 0.0), JacobianFree(TWO, twice, 0.0), DiffPIR(TWO, twice, 0.0)):
        assert_close(twice(method(X, ALPHA, SIGMA, y=y)), y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("std", [0.0, STD])
def test_every_method_takes_samples_one_by_one_and_keeps_dtype_and_graph(std: float) -> None:
    for name, method in methods(TWO, A, std).items():
        together = method(X, ALPHA, SIGMA, y=Y)
        noise = method.noise(X, ALPHA, SIGMA, y=Y)
        for i in range(5):
            rows = slice(i, i + 1)
            for rows in (slice(i, i + 1), slice(i, i + 2)):
                at = (X[rows], ALPHA[rows], SIGMA[rows])
                assert torch.equal(together[rows], method(*at, y=Y[rows])), name
                assert torch.equal(noise[rows], method.noise(*at, y=Y[rows])), name
        # eps and x are of size 10 where (x - alpha D) / sigma is taken.
        assert_close(noise, (X - expand(ALPHA, X) * together) / expand(SIGMA, X), rtol=1e-9, atol=1e-9)
        single = method(X.float(), ALPHA.float(), SIGMA.float(), y=Y.float())
        assert single.dtype == torch.float32
        assert not together.requires_grad
        assert method(X.clone().requires_grad_(), ALPHA, SIGMA, y=Y).requires_grad, name
        with torch.no_grad():
            assert torch.equal(method(X, ALPHA, SIGMA, y=Y), together), name


def test_derivatives_through_each_method_are_those_of_finite_differences() -> None:
    for name, method in methods(TWO, A, STD).items():

        def answer(x: Tensor, method: InverseProblem = method) -> Tensor:
            return method(x, ALPHA[:2], SIGMA[:2], y=Y[:2])

        assert torch.autograd.gradcheck(answer, (X[:2].clone().requires_grad_(),), atol=1e-5), name


def test_a_function_is_linearised_where_the_denoiser_answers() -> None:
    curved, flat = Function(lambda x: x.flatten(1)[:, :3], SHAPE), LinearFunction(lambda x: x.flatten(1)[:, :3], SHAPE)
    for method in (MMPS, TMPD):
        at = (X, ALPHA, SIGMA)
        assert_close(method(TWO, curved, STD)(*at, y=Y), method(TWO, flat, STD)(*at, y=Y), rtol=1e-12, atol=1e-13)
    cube = Function(lambda x: x.flatten(1)[:, :3] ** 3, SHAPE)
    x0 = ONE(X[:1], 0.8, 0.6).flatten(1)
    slope = torch.diag(3 * x0[0, :3].square()) @ torch.eye(6, dtype=torch.float64)[:3]
    covariance = posterior_covariance(ONE, 0.8, 0.6)
    marginal = slope @ covariance @ slope.T + STD**2 * torch.eye(3, dtype=torch.float64)
    moved = covariance @ slope.T @ torch.linalg.solve(marginal, Y[0] - x0[0, :3] ** 3)
    answer = MMPS(ONE, cube, STD)(X[:1], 0.8, 0.6, y=Y[:1]).flatten(1) - x0
    assert_close(answer[0], moved, rtol=1e-9, atol=1e-12)


def test_a_twist_by_mmps_is_the_exact_likelihood_of_a_gaussian() -> None:
    """p(y | x) = N(y; A D(x), A Cov A^T + noise), so that particles of a Gaussian never lose weight."""
    twist = MMPS(ONE, A, STD).twist(X, 0.8, 0.6, y=Y)
    marginal = MATRIX @ posterior_covariance(ONE, 0.8, 0.6) @ MATRIX.T + STD**2 * torch.eye(3, dtype=torch.float64)
    mean = A(ONE(X, 0.8, 0.6))
    expected = torch.distributions.MultivariateNormal(mean, marginal).log_prob(Y) + 1.5 * math.log(2 * math.pi)
    assert_close(twist.log_potential, expected, rtol=1e-10, atol=1e-10)
    assert_close(twist.guided, exact(ONE, X, 0.8, 0.6), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="as the 3 measured values, got 2"):
        MMPS(ONE, A, STD, iterations=2).twist(X, 0.8, 0.6, y=Y)


def test_the_default_twist_has_the_density_of_pigdm_and_the_priors_own_estimate() -> None:
    """So that no weight is that of a chain which the guidance has moved."""
    free, pigdm = (kind(TWO, A, STD, data_std=0.7) for kind in (JacobianFree, PiGDM))
    twist, other = free.twist(X, ALPHA, SIGMA, y=Y), pigdm.twist(X, ALPHA, SIGMA, y=Y)
    assert_close(twist.log_potential, other.log_potential, rtol=1e-12, atol=1e-12)
    assert torch.equal(twist.guided, free(X, ALPHA, SIGMA, y=Y))
    for each in (twist, other):
        assert each.factors[0][0] == 1.0
        assert torch.equal(each.factors[0][1], TWO(X, ALPHA, SIGMA))


def test_bounds_keep_the_proposal_and_not_the_prior() -> None:
    for method in (JacobianFree(TWO, A, STD), PiGDM(TWO, A, STD)):
        free = method(X, ALPHA, SIGMA, y=Y)
        method.bounds = (-0.3, 0.3)
        twist = method.twist(X, ALPHA, SIGMA, y=Y)
        assert torch.equal(twist.guided, free.clamp(-0.3, 0.3))
        assert torch.equal(method(X, ALPHA, SIGMA, y=Y), twist.guided)
        assert torch.equal(twist.factors[0][1], TWO(X, ALPHA, SIGMA))


def test_a_measured_variance_falls_as_that_of_x_beyond_its_levels() -> None:
    variance = PosteriorVariance((-2.0, 4.0), (0.5, 0.01))
    for log_snr, expected in ((-9.0, 0.5), (1.0, math.sqrt(0.005)), (4.0, 0.01), (6.0, 0.01 * math.exp(-2.0))):
        found = variance(math.exp(log_snr / 2), 1.0)
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_guided_flow_has_the_density_of_the_posterior() -> None:
    sde, (posterior, _) = VPSDE(), ONE.posterior(MATRIX, Y[0], STD)
    x0 = posterior.sample(1, generator=GENERATOR)
    first, last = (sde.scales(torch.tensor(t).double()) for t in (sde.t_min, sde.t_max))
    result = log_likelihood(
        MMPS(ONE, A, STD),
        sde,
        x0,
        cond={"y": Y[:1]},
        solver=RK4("log_snr"),
        ts=grids.log_snr(sde, 30).flip(0),
        divergence=Exact(),
        prior_log_prob=lambda x: posterior.log_prob(x, *last),
    )
    # The error of 30 steps of fourth order.
    assert_close(result.log_prob, posterior.log_prob(x0, *first), rtol=0, atol=5e-4)


def test_costs_are_counted_in_evaluations_and_products() -> None:
    cost = {"pigdm": 1, "mmps": 3, "dps": 1, "tmpd": 2, "jacobian_free": 0, "diffpir": 0, "ddnm": 0}
    for name, vjps in cost.items():
        counted = CountCalls(TWO)
        DDIM(1.0)(methods(counted, A, STD)[name], VPSDE(), X, grids.log_snr(VPSDE(), 4), cond={"y": Y})
        assert (counted.samples, counted.vjps) == (5 * counted.calls, 5 * counted.calls * vjps), name


def test_what_a_method_cannot_take_is_refused_in_a_sentence() -> None:
    nonlinear = Function(lambda x: x.flatten(1) ** 2, SHAPE)
    for method in (PiGDM, JacobianFree, DiffPIR, DDNM):
        with pytest.raises(ValueError, match=rf"linear measurement .* for {method.__name__}, got Function"):
            method(ONE, nonlinear, STD)
    for method in (DPS, TMPD):
        with pytest.raises(ValueError, match=rf"noise_std above 0 for {method.__name__}"):
            method(ONE, A, 0.0)
    with pytest.raises(ValueError, match="give a noise_std above 0"):
        MMPS(ONE, pixels(SHAPE, [0, 0]), 0.0)(X, 0.8, 0.6, y=Y[:, [0, 0]])
    with pytest.raises(ValueError, match="known singular values"):
        LinearFunction(lambda x: x, (5000,)).pinv(torch.zeros(1, 5000))  # too large to decompose
    for build in (
        lambda: PiGDM(ONE, A, STD, data_std=0.0),
        lambda: JacobianFree(ONE, A, STD, data_std=-1.0),
        lambda: DPS(ONE, A, STD, spread=-1.0),
        lambda: DPS(ONE, A, STD, scale=0.3, log_snr_step=0.0),
        lambda: DiffPIR(ONE, A, STD, lam=0.0),
        lambda: MMPS(ONE, A, STD, iterations=0),
        lambda: MMPS(ONE, A, -1.0),
    ):
        with pytest.raises(ValueError, match=r"expected a|expected 1 iteration"):
            build()
