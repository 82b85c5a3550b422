"""The dequantiser's network against its Jacobian and quadrature."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from scorefield.models.networks.dequantiser import Dequantiser, checkerboard


def random(shape: tuple[int, ...], spread: float = 1.0, **settings: int) -> Dequantiser:
    """One whose weights are all at random, in float64."""
    module, generator = Dequantiser(shape[0], width=8, **settings).double(), Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.copy_(spread * draw / math.sqrt(weight[0].numel() if weight.ndim > 1 else 4))
    return module.requires_grad_(False)


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """An image within [-1, 1], and uniform numbers."""
    generator = Generator().manual_seed(seed)
    first, second = (torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))
    return 2 * first - 1, second


shapes = pytest.mark.parametrize("shape", [(1, 3, 5), (2, 2, 3), (3, 1, 1)], ids=str)


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 28, 28)], ids=str)
def test_untrained_it_is_uniform(shape: tuple[int, ...]) -> None:
    image, uniform = draws(64, *shape, dtype=torch.float32)
    uniform[0], uniform[1] = 0.0, 1 - 2**-24  # the ends of what torch.rand gives
    u, log_q = Dequantiser(shape[0])(image, uniform)
    assert (u.dtype, log_q.dtype) == (torch.float32, torch.float64)
    assert_close(u, uniform, rtol=0, atol=2e-7)
    assert not log_q.any()


@shapes
def test_log_q_is_the_log_determinant_of_the_jacobian(shape: tuple[int, ...]) -> None:
    module = random(shape, spread=0.7)
    image, uniform = draws(3, *shape)
    u, log_q = module(image, uniform)
    assert u.min() > 0 and u.max() < 1
    assert log_q.abs().max() > 0.1  # something to compare
    for b in range(3):
        one = slice(b, b + 1)
        jacobian = torch.autograd.functional.jacobian(lambda v, one=one: module(image[one], v)[0], uniform[one])
        _, log_det = torch.linalg.slogdet(jacobian.reshape(math.prod(shape), -1))
        assert_close(log_q[b], -log_det, rtol=0, atol=1e-9)


def test_in_float32_it_is_what_it_is_in_float64() -> None:
    module = random((3, 16, 16), spread=1.0)
    image, uniform = draws(4, 3, 16, 16, dtype=torch.float32)
    u, log_q = module(image.double(), uniform.double())
    u32, log_q32 = module.float()(image, uniform)
    assert_close(u32.double(), u, rtol=0, atol=1e-5)
    assert_close(log_q32.double(), log_q, rtol=0, atol=2e-3)  # of 768 dimensions
    far = random((1, 8, 8), spread=10.0).float()
    image, uniform = draws(64, 1, 8, 8, dtype=torch.float32)
    u, log_q = far(image, uniform)
    assert bool(log_q.isfinite().all()) and u.min() >= 0 and u.max() < 1


def test_the_density_of_one_pixel_integrates_to_one() -> None:
    module = random((1, 1, 1), spread=1.5)
    ends = torch.linspace(-25, 25, 20_001, dtype=torch.float64).sigmoid()  # of U, dense at both its ends
    for value in (-0.9, 0.0, 0.7):
        image = torch.full((len(ends), 1, 1, 1), value, dtype=torch.float64)
        u, log_q = module(image, ends.reshape(-1, 1, 1, 1))
        assert u.std() > 0.05 and log_q.std() > 0.05
        assert float(torch.trapezoid(log_q.exp(), u.flatten())) == pytest.approx(1, abs=1e-4)


@shapes
def test_each_coupling_moves_one_half_by_the_other_and_two_move_everything(shape: tuple[int, ...]) -> None:
    even, odd = (checkerboard(torch.zeros(1, *shape), parity) for parity in (0, 1))
    assert_close(even + odd, torch.ones(shape))
    index = torch.tensor([sum(place) for place in np.ndindex(*shape)]).reshape(shape)
    assert_close(even.bool(), index % 2 == 1)

    image, uniform = draws(1, *shape)
    for couplings in (0, 1, 2):
        module = random(shape, couplings=couplings)
        jacobian = torch.autograd.functional.jacobian(lambda v, m=module: m(image, v)[0], uniform)
        jacobian = jacobian.reshape(math.prod(shape), -1)
        across = (jacobian - jacobian.diag().diag()).abs() > 1e-12
        moved = even.flatten().bool()
        if couplings == 0:
            assert not across.any()
        if couplings == 1:
            assert not across[~moved].any() and not across[moved][:, moved].any()
        if couplings and math.prod(shape) > 1:
            assert across[moved][:, ~moved].any(1).all()
        if couplings == 2:
            assert across[~moved][:, moved].any(1).all()


def test_every_part_looks_at_the_image() -> None:
    image, uniform = draws(1, 1, 5, 5)
    other = image.clone()
    other[0, 0, 2, 2] += 0.1
    for mean_field in (True, False):
        module = random((1, 5, 5))
        if not mean_field:
            module.head.weight.zero_()
            module.head.bias.zero_()
        moved = module(other, uniform)[0] - module(image, uniform)[0]
        assert moved[0, 0, 2, 2].abs() > 1e-6 and moved[0, 0, 1, 2].abs() > 1e-6


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="use uniform dequantisation"):
        Dequantiser(3)(torch.zeros(2, 12), torch.zeros(2, 12))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        Dequantiser(3)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="uniform numbers of their shape"):
        Dequantiser(3)(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 1"):
        Dequantiser(0)
