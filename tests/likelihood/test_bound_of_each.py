"""What each dimension adds to a bound, against its own log-density; the errors by level against closed forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import PATHS, batch, gaussian, mixture
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

from scorefield.likelihood import DatasetScorer, GaussianPrior
from scorefield.likelihood.bounds import dsm_bound, elbo, vlb
from scorefield.likelihood.decoders import DiscretisedDecoder, GaussianDecoder, LevelDecoder
from scorefield.likelihood.density import Density
from scorefield.sde_lib import SDE
from scorefield.sde_lib.quantise import cell_centres
from scorefield.solvers import grids

MODEL = gaussian((3,))


def with_signs(x0: Tensor, sde: SDE, draws: int) -> Density:
    """A bound of each x0 (n, 3) with the eight noises (+-1, +-1, +-1), whose means of quadratics are the normal's."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    alpha, sigma = sde.scales(sde.t_max)
    own = (alpha * MODEL.means[0], ((alpha * MODEL.stds[0]) ** 2 + sigma**2).sqrt())
    eps = signs.repeat(len(x0), 1)
    return dsm_bound(
        MODEL, sde, x0.repeat_interleave(8, 0), draws=draws, decodings=1, prior=own, noise=lambda _: eps,
        uniform=lambda x: torch.full_like(x, 0.5),
    )  # fmt: skip


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_a_dimension_of_a_gaussian_adds_its_own_log_density(path: str) -> None:
    # The midpoints of 400 strata and the decoder err by 1e-4 together, as in test_bounds.
    x0 = torch.cat([batch(MODEL, 2), torch.tensor([[2.5, -2.0, 0.3]], dtype=torch.float64)])
    bound = with_signs(x0, PATHS[path], 400)
    assert bound.each is not None
    each = bound.each.reshape(3, 8, 3).mean(1)
    assert_close(each, Normal(MODEL.means[0], MODEL.stds[0]).log_prob(x0), rtol=0, atol=1e-4)


def test_the_errors_by_level_of_a_gaussian_have_a_closed_form() -> None:
    """With v = (alpha s)^2 + sigma^2, eps_hat - eps = (alpha sigma (x0 - m) - (alpha s)^2 eps) / v."""
    sde, x0, draws = PATHS["vp"], batch(MODEL, 2), 12
    bound = with_signs(x0, sde, draws)
    assert bound.errors is not None and bound.errors.shape == (draws, 16)
    high, low = float(sde.log_snr(sde.t_min)), float(sde.log_snr(sde.t_max))
    log_snr = high - (high - low) * (torch.arange(draws, dtype=torch.float64)[:, None, None] + 0.5) / draws
    alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
    signal = (alpha * MODEL.stds[0]) ** 2
    bias = alpha * sigma * (x0 - MODEL.means[0]) / (signal + sigma**2)
    expected = (bias**2 + (signal / (signal + sigma**2)) ** 2).mean(2)
    assert_close(bound.errors.reshape(draws, 2, 8).mean(2), expected, rtol=1e-5, atol=1e-9)


CENTRES = cell_centres(torch.tensor([[0, 4, 8], [3, 5, 2]]), 9).double()
BOUNDS: dict[str, Callable[[], Density]] = {
    "elbo": lambda: elbo(mixture((3,)), PATHS["vp"], CENTRES, decoder=LevelDecoder(9), draws=5),
    "chain": lambda: elbo(mixture((3,)), PATHS["vp"], CENTRES, decoder=GaussianDecoder(), steps=7, draws=3),
    "vlb": lambda: vlb(
        mixture((3,)), PATHS["vp"], CENTRES, decoder=DiscretisedDecoder(9), ts=grids.log_snr(PATHS["vp"], 6),
        variance="large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_the_dimensions_of_every_bound_sum_to_it(name: str) -> None:
    bound = BOUNDS[name]()
    assert bound.each is not None and bound.errors is not None
    assert_close(bound.each.sum(1), bound.log_prob, rtol=1e-12, atol=1e-12)
    assert bound.errors.shape == ({"elbo": 5, "chain": 3, "vlb": 6}[name], 2)


@pytest.mark.parametrize("name", ["elbo", "dsm"])
def test_a_data_sets_dimensions_sum_to_its_values_in_any_batch(name: str) -> None:
    stored, sde = torch.tensor([[0, 4, 8], [3, 5, 2], [1, 1, 7]]), PATHS["vp"]
    scorer = DatasetScorer(MODEL, sde, stored, 9, GaussianPrior.standard(sde), seed=3, draws=6, details=True)
    columns: dict[str, Any] = getattr(scorer, name)(slice(0, 3))
    assert_close(columns[f"{name}_each"].sum(1), columns[name], rtol=1e-12, atol=1e-12)
    assert columns[f"{name}_errors"].shape == (3, 6)
    alone = getattr(scorer, name)(slice(2, 3))
    for key in (f"{name}_each", f"{name}_errors"):
        assert_close(alone[key], columns[key][2:], rtol=1e-5, atol=1e-7)
    assert f"{name}_each" not in getattr(DatasetScorer(MODEL, sde, stored, 9, scorer.prior), name)(slice(0, 1))
