"""The parameterisation of integer data against posteriors written out in float64, EDM's, and an entropy."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.configs import build
from scorefield.likelihood import LevelDecoder, bits_per_dim, elbo
from scorefield.models import VDM, Denoiser, UNet
from scorefield.models.checkpoints.own import from_pretrained, save_pretrained
from scorefield.models.levels import Levels
from scorefield.models.precondition import EDM
from scorefield.sde_lib import FrozenVP
from scorefield.sde_lib.quantise import cell_centres
from scorefield.solvers import PerSampleNoise

LOG_SNRS = torch.tensor([13.3, 9.0, 6.0, 2.0, 0.0, -5.0, -14.0], dtype=torch.float64)


def histogram(levels: int) -> tuple[float, ...]:
    weights = torch.rand(levels, generator=torch.Generator().manual_seed(levels), dtype=torch.float64) ** 4 + 1e-6
    return tuple((weights / weights.sum()).tolist())


def scales(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


class Nothing(nn.Module):
    """A network that has learned nothing."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(x[:, : x.shape[1] // 3])


@pytest.mark.parametrize(
    ("levels", "cells"), [(256, (-1.0, 1.0)), (17, (-1.0, 1.0)), (256, (0.0, 1.0)), (2, (-3.0, 1.0))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_posterior_of_a_pixel(levels: int, cells: tuple[float, float], dtype: torch.dtype) -> None:
    p, generator = histogram(levels), torch.Generator().manual_seed(0)
    k = torch.randint(levels, (len(LOG_SNRS), 1, 4, 5), generator=generator)
    x0 = cell_centres(k, levels, low=cells[0], high=cells[1]).to(dtype)
    alpha, sigma = scales(LOG_SNRS)
    shape = (-1, 1, 1, 1)
    x = (alpha.view(shape) * x0 + sigma.view(shape) * torch.randn(x0.shape, generator=generator)).to(dtype)
    got = Levels(p, cells)(x, alpha, sigma)

    width = (cells[1] - cells[0]) / levels
    centres = cells[0] + width * (torch.arange(levels, dtype=torch.float64) + 0.5)
    away = x.double()[..., None] - alpha.view(shape)[..., None] * centres
    posterior = (torch.tensor(p).double().log() - (away / sigma.view(shape)[..., None]).square() / 2).softmax(-1)
    mean = posterior @ centres
    spread = (posterior * (centres - mean[..., None]).square()).sum(-1).sqrt() * (alpha / sigma).view(shape)
    eps = (x.double() - alpha.view(shape) * mean) / sigma.view(shape)
    # In float32 x has 6e-8 of itself, which is 5e-5 of the noise at 13.3; the spread's root starts at 1e-6.
    tolerance = 5e-4 if dtype == torch.float32 else 1e-7
    assert_close(got.mean.double(), mean, rtol=0, atol=tolerance)
    assert_close(got.eps.double(), eps, rtol=0, atol=tolerance)
    assert_close(got.spread.double(), spread, rtol=0, atol=max(2 * tolerance, 2e-6))
    noisy = slice(3, None)  # there the spread is small, and the network's answer is multiplied by it
    assert_close(got.spread.double()[noisy], spread[noisy], rtol=2e-4, atol=1e-6)


def test_of_a_gaussian_histogram_it_is_edms_parameterisation() -> None:
    # 2,000 levels over six deviations to each side: the sums are integrals to rounding where the noise is wider.
    levels, std = 2000, 0.5
    centres = -3 + 6 / levels * (torch.arange(levels, dtype=torch.float64) + 0.5)
    p = (-((centres / std) ** 2) / 2).exp() + 1e-300
    alpha, sigma = scales(LOG_SNRS[2:])
    x = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = Levels(tuple((p / p.sum()).tolist()), (-3.0, 3.0))(x, alpha, sigma)
    _, c_skip, c_out, _ = EDM(std)(alpha, sigma)
    shape = (-1, 1, 1, 1)
    assert_close(got.mean, c_skip.view(shape) * x, rtol=1e-6, atol=1e-9)
    assert_close(got.spread, (c_out * alpha / sigma).view(shape).expand_as(x), rtol=1e-6, atol=1e-9)


def test_both_answers_of_a_denoiser_agree_and_have_gradients() -> None:
    torch.manual_seed(0)
    net = UNet(2, width=8, multipliers=(1,), blocks=1, attention=(), fourier=(3,), inputs=3)
    nn.init.normal_(net.head.weight, std=0.1)
    denoiser = Denoiser(net, Levels(histogram(17))).double()
    alpha, sigma = scales(LOG_SNRS[1:])
    x = torch.randn(6, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    x0, eps = denoiser(x, alpha, sigma), denoiser.noise(x, alpha, sigma)
    shape = (-1, 1, 1, 1)
    assert_close(alpha.view(shape) * x0 + sigma.view(shape) * eps, x, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(eps[1, 0, 0, 0], x)
    h = 1e-6
    moved = x.detach().clone()
    moved[1, 0, 0, 0] += h
    difference = (denoiser.noise(moved, alpha, sigma) - eps)[1, 0, 0, 0].detach() / h
    assert_close(gradient[1, 0, 0, 0], difference, rtol=1e-3, atol=1e-5)


def test_without_a_network_the_bound_of_independent_pixels_is_their_entropy() -> None:
    levels, p = 17, histogram(17)
    k = torch.multinomial(torch.tensor(p), 400 * 16, replacement=True, generator=torch.Generator().manual_seed(0))
    x0 = cell_centres(k.reshape(400, 1, 4, 4), levels)
    noise = PerSampleNoise(0, range(len(x0)))
    denoiser = Denoiser(Nothing(), Levels(p))
    # The softmax decoder takes all levels as likely. At a log-SNR of 9 that costs nothing: they are far apart.
    bound = elbo(
        denoiser, FrozenVP(low=-12.0, high=9.0), x0, decoder=LevelDecoder(levels), draws=64, noise=noise,
        uniform=noise.uniform,
    )  # fmt: skip
    values = bits_per_dim(bound.log_prob, 16)
    surprise = -torch.tensor(p).log2()[k].reshape(400, 16).mean(1)
    difference = values - surprise
    # Four standard errors of the mean over 400 images: a false alarm in 16,000 runs.
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(400)
    assert float(difference.std()) / math.sqrt(400) < 0.02


def test_a_network_that_has_learned_nothing_is_the_posterior() -> None:
    denoiser = Denoiser(UNet(1, width=8, multipliers=(1,), blocks=1, inputs=3), Levels(histogram(256)))
    alpha, sigma = scales(LOG_SNRS)
    x = torch.randn(7, 1, 4, 4)
    assert_close(denoiser(x, alpha, sigma), Levels(histogram(256))(x, alpha, sigma).mean, rtol=0, atol=0)


@pytest.mark.parametrize("make", [UNet, VDM])
def test_it_goes_into_a_folder_and_comes_back(make: type[nn.Module], tmp_path: Path) -> None:
    denoiser = Denoiser(make(1, width=8, blocks=1, inputs=3), Levels(histogram(17), (0.0, 1.0)))
    nn.init.normal_(denoiser.net.head.weight, std=0.1)
    save_pretrained(denoiser, FrozenVP("bins", weights=((0.0,) * 64,)), tmp_path / "folder", shape=(1, 8, 8), levels=17)
    again, sde = from_pretrained(tmp_path / "folder")
    assert again.precondition == denoiser.precondition
    assert sde == FrozenVP("bins", weights=((0.0,) * 64,))
    alpha, sigma = scales(LOG_SNRS)
    x = torch.randn(7, 1, 8, 8)
    assert torch.equal(again(x, alpha, sigma), denoiser.eval()(x, alpha, sigma))


def test_what_has_no_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a positive probability for each of two levels or more"):
        Levels((0.5, 0.5, 0.0))
    with pytest.raises(ValueError, match="expected the probabilities of the levels"):
        build.build(build.PRECONDITIONS, "levels", cells=(-1.0, 1.0))
