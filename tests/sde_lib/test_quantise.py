"""Integers and values: dequantisation and its inverse, against counting and closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from scorefield.sde_lib.quantise import cell_centres, dequantise, place_in_cell, quantise
from scorefield.solvers import PerSampleNoise


@pytest.mark.parametrize(("levels", "low", "high"), [(2, -1.0, 1.0), (17, -3.0, 5.0), (256, 0.0, 1.0)])
def test_dequantised_integers_come_back_by_rounding_down(levels: int, low: float, high: float) -> None:
    k = torch.arange(levels).repeat(5, 1)
    share = torch.tensor([0.0, 1e-3, 0.5, 0.9, 0.999])[:, None].expand(5, levels)
    x, log_det = dequantise(k, levels, low=low, high=high, uniform=lambda like: share)
    assert x.dtype == torch.float32
    assert x.shape == k.shape
    assert float(x.min()) == low
    assert float(x.max()) < high
    cells = (x.double() - low) / (high - low) * levels
    # Float32 rounds x to 6e-8 of the range's size, 3 / 8 of it at worst: in cells, times the levels.
    assert_close(cells, k + share.double(), rtol=0, atol=1e-7 * levels)
    assert float(log_det) == pytest.approx(levels * math.log((high - low) / levels), rel=1e-14, abs=1e-14)


RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (-0.3, 0.7), (0.1, 0.3), (-0.7, 0.1), (-1 - 1 / 255, 1 + 1 / 255)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_quantise_undoes_dequantise_exactly(low: float, high: float) -> None:
    # Every k at each number of levels, at both ends of the cell and in between.
    generator = torch.Generator().manual_seed(0)
    for levels in (2, 3, 5, 17, 100, 255, 256, 257, 1000, 4096, 65535, 65536):
        k = torch.arange(levels)[None]
        for u in (0.0, 2.0**-30, 1 - 2.0**-24, 1.0, None):
            x, _ = dequantise(
                k, levels, low=low, high=high,
                uniform=lambda like, u=u: torch.rand(like.shape, generator=generator) if u is None else like * 0 + u,
            )  # fmt: skip
            assert x.dtype == torch.float32
            assert torch.equal(quantise(x, levels, low=low, high=high), k), (levels, u)
            # below as numbers, and below as float32 rounds the end
            assert low <= float(x.min()) <= float(x.max()) < high
            assert bool((x < high).all())
        assert torch.equal(quantise(cell_centres(k, levels, low=low, high=high), levels, low=low, high=high), k)
    far = torch.tensor([low - 10, low, high, high + 10])
    assert quantise(far, 256, low=low, high=high).tolist() == [0, 0, 255, 255]


def test_place_in_cell_is_differentiable_by_the_place() -> None:
    u = torch.tensor([[0.0, 0.3, 1 - 2.0**-24]], requires_grad=True)
    x = place_in_cell(torch.tensor([[0, 7, 255]]), u, 256)
    (slope,) = torch.autograd.grad(x.sum(), u)
    assert slope.tolist() == [[2 / 256] * 3]
    assert quantise(x, 256).tolist() == [[0, 7, 255]]


@pytest.mark.parametrize(("levels", "low", "high"), [(65536, 1000.0, 1001.0), (256, 1.0, 1.0), (256, 1.0, -1.0)])
def test_cells_that_float32_cannot_tell_apart_are_refused(levels: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"expected cells that float32 can tell apart, got {levels} from"):
        dequantise(torch.zeros(1, 1, dtype=torch.long), levels, low=low, high=high)


@pytest.mark.parametrize("levels", [17])
def test_dequantising_noise_is_uniform_over_a_cell(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(levels, (500, 4, 10), generator=generator)
    x, _ = dequantise(k, levels, uniform=lambda like: torch.rand(like.shape, generator=generator))
    share = (x.double() + 1) / 2 * levels - k
    assert float(share.min()) > -1e-12
    assert float(share.max()) < 1 + 1e-12
    # Kolmogorov's distance of 20000 uniforms exceeds 2.8 / sqrt(n) once in 3e6 times (2 exp(-2 * 2.8^2)).
    ordered = share.flatten().sort().values
    assert float((ordered - (torch.arange(20000) + 0.5) / 20000).abs().max()) < 2.8 / math.sqrt(20000)


@pytest.mark.parametrize(("levels", "nats"), [(2, 0.0), (17, 12 * math.log(2 / 17))])
def test_log_det_is_the_log_volume_of_a_cell(levels: int, nats: float) -> None:
    _, log_det = dequantise(torch.zeros(5, 3, 2, 2, dtype=torch.uint8), levels)
    assert log_det.shape == ()
    assert log_det.dtype == torch.float64
    assert float(log_det) == pytest.approx(nats, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.bool], ids=str)
def test_integers_of_any_type_are_dequantised(dtype: torch.dtype) -> None:
    k = torch.tensor([[0, 1, 1, 0]]).to(dtype)
    x, _ = dequantise(k, 2, uniform=lambda like: torch.full_like(like, 0.5))
    assert x.tolist() == [[-0.5, 0.5, 0.5, -0.5]]


def test_dequantising_noise_may_belong_to_the_sample() -> None:
    k = torch.randint(256, (4, 3, 2), generator=torch.Generator().manual_seed(0))
    together, _ = dequantise(k, 256, uniform=PerSampleNoise(5, range(4)).uniform)
    single, _ = dequantise(k[2:3], 256, uniform=PerSampleNoise(5, [2]).uniform)
    assert_close(together[2:3], single, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3), "expected integers 0 .. 16, got torch.float32"),
        (torch.tensor([[0, 17]]), "expected integers 0 .. 16 for 17 levels, got 0 to 17"),
        (torch.tensor([[-1, 16]]), "expected integers 0 .. 16 for 17 levels, got -1 to 16"),
        (torch.tensor([[255]], dtype=torch.uint8), "got 255 to 255"),
    ],
)
def test_images_that_are_not_those_integers_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantise(images, 17)
