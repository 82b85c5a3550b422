"""Numbers of reconstructions, against closed forms and the windows of the paper one by one."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.testing import assert_close

from scorefield.evaluation.reconstruction import DimensionCounter, UsageCounter, psnr, ssim
from scorefield.models.moments import Moments


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 4, 4)
    y = x + torch.tensor([0.02, 0.2])[:, None, None, None]
    assert_close(psnr(x, y), torch.tensor([40.0, 20.0], dtype=torch.float64), rtol=0, atol=1e-5)
    assert_close(psnr(x, y, span=1.0), psnr(x, y) - 20 * math.log10(2))
    assert psnr(x, x).tolist() == [math.inf] * 2


def test_ssim_is_that_of_scipys_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, 20, 17, generator=generator, dtype=torch.float64) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)

    def mean(values: np.ndarray) -> np.ndarray:  # 11 x 11 pixels: 3.5 deviations cut at 5 pixels
        return gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]

    expected = np.zeros((2, 2))
    for place in np.ndindex(2, 2):
        a, b = x[place].numpy(), y[place].numpy()
        ma, mb = mean(a), mean(b)
        va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        c1, c2 = 0.02**2, 0.06**2
        expected[place] = ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    assert_close(ssim(x, y), torch.from_numpy(expected.mean(1)), rtol=0, atol=1e-12)
    assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert ssim(x[..., :5, :5], y[..., :5, :5]).shape == (2,)


@pytest.mark.parametrize("size", [8, 2**40])
def test_usage_is_that_of_the_set(size: int) -> None:
    counter = UsageCounter(size)
    with pytest.raises(ValueError, match="got none"):
        counter.usage()
    counter.add(torch.tensor([[0, 1], [1, 5]]))
    counter.add(torch.tensor([5, 5, 5, 1]))
    used, _, perplexity = counter.usage()
    assert used == 3 and counter.usage().share == 3 / size
    entropy = -sum(p * math.log(p) for p in (1 / 8, 3 / 8, 4 / 8))
    assert math.isclose(perplexity, math.exp(entropy))


def test_the_divergence_of_each_dimension_adds_to_that_of_the_code() -> None:
    generator = torch.Generator().manual_seed(0)
    moments = Moments(*torch.randn(2, 6, 2, 3, 3, generator=generator, dtype=torch.float64))
    counter = DimensionCounter()
    with pytest.raises(ValueError, match="got none"):
        counter.kl()
    for rows in ((0, 4), (4, 6)):
        counter.add(moments.kl_of_each()[slice(*rows)])
    assert counter.kl().shape == (2, 3, 3)
    assert_close(counter.kl().sum(), moments.kl().mean())
