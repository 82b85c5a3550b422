"""Posterior denoisers against exact posteriors, on every path."""

import pytest
import torch
from oracles import PATHS
from torch import Tensor
from torch.testing import assert_close

from scorefield.models.analytic import GaussianMixture
from scorefield.models.guidance import MMPS, PiGDM
from scorefield.models.measurements import LinearFunction
from scorefield.sde_lib.broadcast import Scale

GENERATOR = torch.Generator().manual_seed(3)
SHAPE = (2, 3)
MATRIX = torch.randn(3, 6, generator=GENERATOR, dtype=torch.float64)
STD = 0.2


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def correlated(count: int = 1) -> GaussianMixture:
    root = draw(count, 6, 6) / 2
    covariances = root @ root.mT + 0.05 * torch.eye(6, dtype=torch.float64)
    return GaussianMixture(draw(count, *SHAPE), None, 1 + torch.arange(count).double(), covariances=covariances)


PRIOR, TWO = correlated(), correlated(2)
X, Y = draw(5, *SHAPE), draw(5, 3)
ROUND = GaussianMixture(draw(1, *SHAPE), torch.full((1,), 0.7, dtype=torch.float64), torch.ones(1).double())


def measurement() -> LinearFunction:
    return LinearFunction(lambda x: x.flatten(1) @ MATRIX.to(x).T, SHAPE)


def exact(prior: GaussianMixture, x: Tensor, alpha: Scale, sigma: Scale, std: float = STD) -> Tensor:
    """E[x0 | x, y] of a Gaussian, by the matrices of its joint normal. `prior` is taken at its own (alpha, sigma)."""
    answers = []
    for row, y in zip(x, Y, strict=True):
        answers.append(prior.posterior(MATRIX, y, std)[0](row[None], alpha, sigma))
    return torch.cat(answers)


@pytest.mark.parametrize("path", PATHS)
def test_mmps_is_the_posterior_of_any_gaussian_and_pigdm_of_a_round_one(path: str) -> None:
    sde = PATHS[path]
    for share in (0.02, 0.5, 0.98):
        alpha, sigma = sde.scales(torch.tensor(share * sde.t_max, dtype=torch.float64))
        for prior, method in (
            (PRIOR, MMPS(PRIOR, measurement(), STD, iterations=3)),
            (ROUND, PiGDM(ROUND, measurement(), STD, data_std=0.7)),
        ):
            x = alpha * prior.sample(5, generator=GENERATOR) + sigma * draw(5, *SHAPE)
            assert_close(method(x, alpha, sigma, y=Y), exact(prior, x, alpha, sigma), rtol=1e-10, atol=1e-10)
