"""The length of a code against the bound, and every bit of the images and of the stack against the original."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.compression import BitsBack, ByLevel, ChainPlan, Codec, Stack
from scorefield.likelihood import vlb
from scorefield.models.analytic import GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, MultivariateVP, RectifiedSDE
from scorefield.sde_lib.quantise import cell_centres, quantise

LEVELS = 32
PATHS: dict[str, SDE] = {
    "vp": VPSDE(), "ve": VESDE(sigma_max=20.0), "edm": EDMSDE(), "cosine": CosineSDE(), "flow": RectifiedSDE()
}  # fmt: skip
Levels = NDArray[np.int64]


def random_stack(bits: int, seed: int = 0) -> Stack:
    return Stack(np.random.default_rng(seed).integers(1, 2**32, bits // 32 + 1, dtype=np.uint32))


def mixture_and_levels(shape: tuple[int, ...], count: int) -> tuple[GaussianMixture, Levels]:
    """A mixture of three, and levels of its samples."""
    generator = torch.Generator().manual_seed(0)
    means = 1.2 * torch.rand((3, *shape), generator=generator, dtype=torch.float64) - 0.6
    stds, weights = torch.tensor([0.06, 0.1, 0.2]).double(), torch.tensor([0.3, 0.5, 0.2]).double()
    model = GaussianMixture(means, stds, weights)
    return model, quantise(model.sample(count, generator), LEVELS).numpy()


def coder(
    model: Callable[..., Tensor], sde: SDE, steps: int, shape: tuple[int, ...], std: float | None = None
) -> BitsBack:
    """From half a cell of noise on; with a std the last decoder is the discretised Gaussian."""
    start = float(sde.time(torch.tensor(-2 * math.log(1 / LEVELS), dtype=torch.float64)))
    plan = ChainPlan(steps, start, std=std)
    return BitsBack(model, plan.chain(sde), plan.decoder(sde, LEVELS, -1.0, 1.0), shape, torch.float64)


@pytest.mark.parametrize(("path", "std"), [("ve", 2 / LEVELS), ("flow", None)])
def test_the_length_is_the_bound_of_the_chain(path: str, std: float | None) -> None:
    """An independent estimate of the same mean: 0.5% is two standard errors of their difference."""
    model, k = mixture_and_levels((1, 4, 2), 2000)
    code, stack = coder(model, PATHS[path], 60, (1, 4, 2), std), random_stack(20 * k.size)
    before = stack.bits
    code.push(stack, k)
    torch.manual_seed(0)
    x0 = cell_centres(torch.from_numpy(k), LEVELS).double()
    bound = vlb(model, PATHS[path], x0, decoder=code.decoder.decoder, ts=code.chain.ts)
    assert stack.bits - before == pytest.approx(-float(bound.log_prob.sum()) / math.log(2), rel=0.005)


class Watched(Stack):
    """A stack that remembers the fewest bits that it had."""

    least = 10**9

    def pop_draw(self, mean: NDArray[np.float64], std: float) -> Levels:
        k = super().pop_draw(mean, std)
        self.least = min(self.least, self.bits)
        return k


@pytest.mark.parametrize("path", ["vp", "ve"])
def test_no_more_bits_are_on_loan_than_the_chain_announces(path: str) -> None:
    """Less are, by those of the images themselves: about one for each dimension here."""
    model, k = mixture_and_levels((1, 4, 2), 400)
    code, stack = coder(model, PATHS[path], 20, (1, 4, 2)), Watched(random_stack(20 * k.size).words)
    before = stack.bits
    code.push(stack, k)
    assert 0 < code.chain.initial_bits - (before - stack.least) / k.size < 1.3


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 4, 2), (6,), (2,)], ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("std", [0.05, None])
def test_images_and_the_stack_come_back_to_the_bit(path: str, shape: tuple[int, ...], std: float | None) -> None:
    model, k = mixture_and_levels(shape, 3)
    code, stack = coder(model, PATHS[path], 4, shape, std), random_stack(100 * k.size)
    initial = stack.words
    code.push(stack, k)
    np.testing.assert_array_equal(code.pop(stack, len(k)), k)
    np.testing.assert_array_equal(stack.words, initial)


@pytest.mark.parametrize("std", [0.3, None])
def test_rows_of_many_levels_are_coded_in_parts(std: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorefield.compression.levels.CHUNK", 500)
    decoder = ByLevel(256, -1.0, 1.0, std or 0.02, calls_denoiser=std is not None)
    rng, stack = np.random.default_rng(0), random_stack(1000)
    k, words = rng.integers(0, 256, 90), stack.words
    seen = decoder.centre(k) + rng.normal(0, 0.02, 90)
    decoder.push(stack, k, seen)
    nats = decoder.log_prob(*(torch.from_numpy(each) for each in (decoder.centre(k), seen)))
    assert stack.bits - random_stack(1000).bits == pytest.approx(-float(nats.sum()) / math.log(2), abs=1)
    np.testing.assert_array_equal(decoder.pop(stack, seen), k)
    np.testing.assert_array_equal(stack.words, words)


def wild(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that is wrong by up to a billion noises."""
    return 1e8 * torch.sin(40 * x) ** 9


@pytest.mark.parametrize("std", [0.05, None])
def test_no_denoiser_is_too_wrong_to_be_lossless(std: float | None) -> None:
    k = np.random.default_rng(0).integers(0, LEVELS, (5, 9))
    code, stack = coder(wild, VPSDE(), 6, (9,), std), random_stack(100 * k.size)
    initial = stack.words
    code.push(stack, k)
    np.testing.assert_array_equal(code.pop(stack, len(k)), k)
    np.testing.assert_array_equal(stack.words, initial)


def test_a_denoiser_that_is_not_finite_is_refused() -> None:
    code = coder(lambda x, alpha, sigma: x * math.nan, VPSDE(), 2, (3,))
    with pytest.raises(ValueError, match="expected finite predictions of the denoiser"):
        code.push(random_stack(1000), np.zeros((1, 3), np.int64))


def test_a_path_with_a_noise_level_for_each_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="one noise level for all dimensions for a chain of steps"):
        ChainPlan(4, 0.0).chain(MultivariateVP((3,)))


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_a_set_of_images_is_lent_its_first_bits_by_a_plain_code(count: int) -> None:
    model, k = mixture_and_levels((1, 4, 4), count)
    codec = Codec(coder(model, VPSDE(), 10, (1, 4, 4)), batch=4)
    coded = codec.compress(k)
    np.testing.assert_array_equal(codec.decompress(coded), k)
    assert coded.plain in (min(count, 2), min(count, 3))
    assert coded.plain + sum(coded.batches) == count
    assert coded.batches == () or max(coded.batches) <= 4
    if count == 40:
        assert coded.plain_bits > 16 * codec.coder.chain.initial_bits
        assert list(coded.batches) == [*sorted(coded.batches[:-1]), coded.batches[-1]]


def test_other_bits_and_another_model_are_noticed() -> None:
    model, k = mixture_and_levels((5,), 30)
    codec = Codec(coder(model, VPSDE(), 5, (5,)))
    coded = codec.compress(k)
    other = Codec(coder(mixture_and_levels((5,), 1)[0].noise, VPSDE(), 5, (5,)))
    with pytest.raises(ValueError, match="expected"):
        np.testing.assert_array_equal(other.decompress(coded), k)
