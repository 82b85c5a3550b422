"""Editing along a path: SDEdit on a Gaussian, and a change of class that comes back."""

import math

import pytest
import torch
from oracles import PATHS, gaussian
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import ClassifierFree, Gaussian
from scorefield.sde_lib import SDE
from scorefield.solvers import (
    BELM,
    PerSampleNoise,
    StochasticDPMSolver,
    Twisted,
    UniPC,
    grids,
    recondition,
    sdedit,
    time_of_strength,
)

MEAN, STD = torch.tensor([0.5, -0.3], dtype=torch.float64), 0.6
MODEL = Gaussian(MEAN, torch.full((2,), STD, dtype=torch.float64))
X0 = torch.tensor([[1.4, 0.2], [-0.5, 0.9], [0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("path", ["vp", "ve", "cosine", "rectified", "edm"])
def test_a_strength_is_the_same_noise_on_every_path(path: str) -> None:
    sde: SDE = PATHS[path]
    for strength, level in ((0.25, 0.1), (0.5, 1.0), (0.7, 0.01 * 10**2.8)):
        alpha, sigma = sde.scales(time_of_strength(sde, strength))
        assert float(sigma / alpha) == pytest.approx(level, rel=1e-6)
    assert time_of_strength(sde, 1.0) <= sde.t_max


@pytest.mark.parametrize("path", ["vp", "ve"])
def test_without_noise_of_its_own_it_is_the_flow_of_the_noised_input(path: str) -> None:
    """Of a Gaussian the flow is a line:  m + (x - alpha m) s / std(x)  at the end, where alpha is 1 and sigma 0."""
    sde, noise = PATHS[path], PerSampleNoise(3, range(3))
    found = sdedit(MODEL, sde, X0, 0.6, solver=UniPC(), steps=200, noise=noise, denoise=True)
    alpha, sigma = (float(v) for v in sde.scales(time_of_strength(sde, 0.6)))
    x = alpha * X0 + sigma * PerSampleNoise(3, range(3))(X0)
    exact = MEAN + STD / math.hypot(alpha * STD, sigma) * (x - alpha * MEAN)
    assert_close(found, exact, rtol=0, atol=3e-4)
    one = sdedit(MODEL, sde, X0[1:2], 0.6, solver=UniPC(), steps=200, noise=PerSampleNoise(3, [1]))
    assert_close(one, found[1:2], rtol=0, atol=1e-12)


def test_the_law_of_the_result_is_that_of_the_posterior_of_the_noised_input() -> None:
    """E and Var of x0 drawn given x_t, over the noise of x_t; 5 standard errors: a false alarm in 10^6."""
    sde, n = PATHS["vp"], 3000
    x0 = X0[:1].expand(n, 2)
    found = sdedit(MODEL, sde, x0, 0.5, solver=StochasticDPMSolver(), steps=80, noise=PerSampleNoise(0, range(n)))
    gain = STD**2 / (STD**2 + 1)  # at sigma = alpha
    mean, variance = MEAN + gain * (X0[0] - MEAN), STD**2 * (1 - gain) + gain**2
    assert ((found.mean(0) - mean).abs() < 5 * math.sqrt(variance / n) + 0.005).all()
    assert ((found.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n) + 0.02).all()


def test_no_strength_is_the_input_and_all_is_a_sample_of_the_prior() -> None:
    sde, noise = PATHS["vp"], PerSampleNoise(0, range(3))
    assert torch.equal(sdedit(MODEL, sde, X0, 0.0), X0)
    ends = [sdedit(MODEL, sde, x0, 1.0, steps=5, noise=PerSampleNoise(0, range(3))) for x0 in (X0, X0 + 7)]
    assert torch.equal(*ends)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"expected a strength within \[0, 1\], got"):
            sdedit(MODEL, sde, X0, wrong, noise=noise)
    with pytest.raises(ValueError, match="expected a solver of one state for sdedit"):
        sdedit(MODEL, sde, X0, 0.5, solver=Twisted(2), noise=noise)


class OfClass(nn.Module):
    """E[x0 | x, label] of a Gaussian a label."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        shift = (torch.zeros(len(x)) if label is None else 1.0 + label).to(x)[:, None]
        return gaussian((2,))(x - alpha * shift, alpha, sigma) + shift


def test_the_same_class_gives_the_input_back_and_another_moves_it() -> None:
    sde, ts, label = PATHS["vp"], grids.log_snr(PATHS["vp"], 80), torch.tensor([0, 1, 2])
    same, other = {"label": label}, {"label": label + 1}
    back = recondition(OfClass(), sde, X0, same, same, ts=ts, solver=BELM())
    assert_close(back, X0, rtol=0, atol=1e-12)
    moved = recondition(OfClass(), sde, X0, same, other, ts=ts, solver=UniPC())
    alpha, sigma = sde.scales(sde.t_max)
    std = gaussian((2,)).stds[0]
    exact = X0 + 1 - alpha * std / (alpha * std).hypot(sigma)  # the same Gaussian, a unit away
    assert_close(moved, exact, rtol=0, atol=1e-3)
    decoder = ClassifierFree(OfClass(), 1.0)
    assert_close(recondition(OfClass(), sde, X0, same, other, ts=ts, solver=UniPC(), decoder=decoder), moved)
