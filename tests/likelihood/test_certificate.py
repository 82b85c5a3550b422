"""Weights of a guided flow, against exact posteriors and evidences of Gaussian mixtures."""

import math

import pytest
import torch
from torch.testing import assert_close

from scorefield.evaluation.posterior import sliced_wasserstein
from scorefield.likelihood import Certificate, certify
from scorefield.models.analytic import GaussianMixture
from scorefield.models.guidance import MMPS, InverseProblem
from scorefield.models.measurements import Function, LinearFunction
from scorefield.sde_lib import VPSDE
from scorefield.solvers import PerSampleNoise, grids

SDE, STD = VPSDE(), 0.1
A = torch.tensor([[1.0, 0.4]], dtype=torch.float64)
MEASUREMENT = LinearFunction(lambda x: (x[:, None] * A.to(x)).sum(2), (2,))
ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture(
    torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    torch.full((8,), 0.15, dtype=torch.float64),
    torch.ones(8, dtype=torch.float64),
)

CORRELATED = GaussianMixture(
    torch.tensor([[0.3, -0.2]], dtype=torch.float64),
    None,
    torch.ones(1, dtype=torch.float64),
    covariances=torch.tensor([[[1.0, 0.6], [0.6, 0.5]]], dtype=torch.float64),
)
Y = torch.tensor([[0.9], [-0.75]], dtype=torch.float64)


def certified(problem: InverseProblem, rows: list[int], draws: int, steps: int) -> Certificate:
    """Of measurements Y, each with its own noise."""
    noise = PerSampleNoise(0, rows)
    return certify(problem, SDE, grids.log_snr(SDE, steps), cond={"y": Y[rows]}, draws=draws, noise=noise)


def test_weights_bring_a_guided_flow_to_the_posterior_of_a_ring() -> None:
    result = certified(MMPS(RING, MEASUREMENT, STD), [0, 1], 200, 16)
    distances = torch.zeros(2, 3)
    for i in range(2):
        posterior, evidence = RING.posterior(A, Y[i], STD)
        exact, floor = (posterior.sample((n,), torch.Generator().manual_seed(n)) for n in (4000, 200))
        weights = (None, result.log_weights[i], None)
        samples = zip((result.x[i], result.x[i], floor), weights, strict=True)
        distances[i] = torch.tensor([sliced_wasserstein(x, exact, w) for x, w in samples])
        # Four standard errors are a false alarm of 6e-5. The solver and the prior at t_max leave less than 0.01 nats.
        assert abs(float(result.log_evidence[i] - evidence)) < 4 * float(result.std_error[i]) + 0.01
        # The mean has the error of as many exact draws as the effective sample size, here 4.5 of them.
        error = (result.mean()[i] - exact.mean(0)) / exact.std(0)
        assert float(error.abs().max()) < 4.5 / float(result.ess[i]) ** 0.5
    assert bool((result.share > 0.7).all())
    comb = (torch.arange(20000, dtype=torch.float64) + 0.5).expand(2, -1) / 20000
    # Each of 200 draws comes once too often or too rarely at most, and is no farther than 2 from 0.
    assert_close(result.resample(comb).mean(1), result.mean(), rtol=0, atol=200 / 20000 * 2)
    flow, weighted, least = distances.mean(0).tolist()
    assert flow > 2.5 * least
    assert weighted < 1.6 * least  # 160 effective draws of a law with two to four modes


def test_weights_are_equal_and_the_evidence_exact_where_the_guidance_is() -> None:
    result = certified(MMPS(CORRELATED, MEASUREMENT, STD), [0, 1], 4, 24)
    exact = torch.stack([CORRELATED.posterior(A, y, STD)[1] for y in Y])
    # alpha = 0.0066 at t_max. The path's prior has none of the data, which is the error that is left.
    assert bool((result.share > 1 - 1e-4).all())
    assert_close(result.log_evidence, exact, rtol=0, atol=0.003)
    assert bool((result.std_error < 0.005).all())


def test_a_measurement_has_its_own_draws_in_any_batch() -> None:
    problem = MMPS(RING, MEASUREMENT, STD)
    both, one = (certified(problem, rows, 5, 6) for rows in ([0, 1], [1]))
    assert torch.equal(both.x[1:], one.x)
    assert torch.equal(both.log_weights[1:], one.log_weights)
    assert torch.equal(both.log_evidence[1:], one.log_evidence)


def test_what_has_no_exact_weights_is_refused_in_one_line() -> None:
    many = Function(lambda x: x[:, :1], (28, 28))
    for problem, y, said in (
        (MMPS(RING, many, STD), torch.zeros(2, 1, 28), r"expected at most 300 dimensions .* got 784: use Twisted\(\)"),
        (MMPS(RING, MEASUREMENT, 0.0), Y, "expected a noise_std above 0 for a certificate"),
        (RING, Y, "expected an inverse problem for a certificate"),
        (MMPS(RING, MEASUREMENT, STD), None, "got none: pass one row"),
    ):
        with pytest.raises(ValueError, match=said):
            certify(problem, SDE, grids.log_snr(SDE, 3), cond={} if y is None else {"y": y})
    with pytest.raises(ValueError, match="expected a falling grid"):
        certify(MMPS(RING, MEASUREMENT, STD), SDE, grids.log_snr(SDE, 3).flip(0), cond={"y": Y})
