"""How a denoiser is called, and what happens to its conditioning."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from scorefield.sde_lib import predict_noise, predict_x0
from scorefield.sde_lib.denoiser import BoundDenoiser, take_rows

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def shifted(x: Tensor, alpha: float, sigma: float, *, y: Tensor, far: float = 0.0) -> Tensor:
    return x / 2 + y + far


class Direct:
    """A denoiser with a method `noise`."""

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return x / 2

    def noise(self, x: Tensor, alpha: float, sigma: float, shift: float = 0.0) -> Tensor:
        return 7 * x + shift


def test_noise_is_x_minus_alpha_d_over_sigma_or_the_denoisers_own() -> None:
    assert_close(predict_noise(lambda x, a, s: x / 2, X, 0.5, 0.25), (X - X / 4) * 4)
    assert_close(predict_noise(Direct(), X, 0.5, 0.25, shift=1.0), 7 * X + 1)


@pytest.mark.parametrize("call", [predict_x0, predict_noise])
def test_an_answer_of_another_shape_is_refused_and_of_another_dtype_cast(call: object) -> None:
    assert callable(call)
    for wrong in (X[:1], X[..., None], X.sum()):
        with pytest.raises(ValueError, match="expected the denoiser to answer in the shape of x"):
            call(lambda x, a, s, wrong=wrong: wrong, X, 0.5, 0.25)
    assert call(lambda x, a, s: x.double(), X.float(), 0.5, 0.25).dtype == torch.float32


def test_rows_are_taken_of_tensors_alone() -> None:
    cond = {"y": X, "text": "a digit", "scale": 2.0}
    part = take_rows(cond, torch.tensor([3, 1]), 4)
    assert torch.equal(part.pop("y"), X[[3, 1]])
    assert part == {"text": "a digit", "scale": 2.0}
    for wrong in (X[:2], torch.tensor(1.0), X[:1]):
        with pytest.raises(ValueError, match=r"expected cond\['y'\] with a row for each of the 4 samples"):
            take_rows({"y": wrong}, slice(None), 4)


def test_a_bound_denoiser_calls_with_its_rows_and_keeps_its_last_answer() -> None:
    bound = BoundDenoiser(shifted, {"y": X, "far": 1.0}, 4)
    assert_close(bound(X, 0.5, 0.25), X / 2 + X + 1)
    assert bound.last_x0() is None  # not asked to
    bound.keep_last()
    part = bound.take(slice(1, 3))
    assert_close(part(X[:2], 0.5, 0.25), X[:2] / 2 + X[1:3] + 1)
    assert_close(bound.last_x0(), X[:2] / 2 + X[1:3] + 1)
    assert_close(part.take(torch.tensor([1])).noise(X[:1], 0.5, 0.25), (X[:1] - (X[:1] / 2 + X[2:3] + 1) / 2) * 4)
    assert_close(bound.last_x0(), X[:1] / 2 + X[2:3] + 1)
    direct = BoundDenoiser(Direct(), {}, 4)
    direct.keep_last()
    assert_close(direct.noise(X, 0.5, 0.25), 7 * X)
    assert_close(direct.last_x0(), (X - 0.25 * 7 * X) / 0.5)
