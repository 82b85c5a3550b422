"""Classifier-free guidance, and denoisers that count."""

import pytest
import torch
from oracles import gaussian
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import ClassifierFree, CountCalls, Denoiser, precondition
from scorefield.sde_lib import VPSDE, predict_noise
from scorefield.solvers import Adaptive, DPMSolver, grids

X = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABEL = torch.tensor([0, 1, 1, 0])


class TwoGaussians(nn.Module):
    """E[x0 | x, label] of a Gaussian a label; without one, that of a third."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None = None, far: float = 0.0) -> Tensor:
        shift = far + (torch.zeros(len(x)) if label is None else 1.0 + label)
        return gaussian((3, 2))(x - shift.to(x)[:, None, None], alpha, sigma)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_classifier_free_guidance_is_the_line_through_both_denoisers(scale: float) -> None:
    denoiser = TwoGaussians()
    guided, at = ClassifierFree(denoiser, scale), (X, 0.8, 0.6)
    for far in (0.0, 2.0):  # the rest of cond goes to both
        without, with_label = denoiser(*at, far=far), denoiser(*at, label=LABEL, far=far)
        assert_close(
            guided(*at, label=LABEL, far=far), (1 - scale) * without + scale * with_label, rtol=1e-12, atol=1e-13
        )
        noise = (1 - scale) * predict_noise(denoiser, *at, far=far) + scale * predict_noise(
            denoiser, *at, label=LABEL, far=far
        )
        assert_close(predict_noise(guided, *at, label=LABEL, far=far), noise, rtol=1e-12, atol=1e-13)


def test_a_solver_gives_each_sample_its_own_guidance() -> None:
    sde, guided = VPSDE(), ClassifierFree(TwoGaussians(), 2.0)
    ts = grids.log_snr(sde, 5)
    for solver in (DPMSolver(), Adaptive()):
        x = solver(guided, sde, X, ts, cond={"label": LABEL})
        for i in range(4):
            one = solver(guided, sde, X[i : i + 1], ts, cond={"label": LABEL[i : i + 1]})
            assert torch.equal(x[i : i + 1], one)


class Labelled(nn.Module):
    """A network whose answer a label moves."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.answer if label is None else self.answer + 0.1 * label.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def test_guidance_keeps_the_digits_of_the_noise() -> None:
    """As the denoiser it wraps does, at sigma = 1e-5 in float32."""
    eps = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (X + 1e-5 * eps).float()
    single, double = (
        ClassifierFree(Denoiser(Labelled(eps.float().to(dtype)), precondition.eps), 2.0)
        for dtype in (torch.float32, torch.float64)
    )
    found = predict_noise(single, x, 1.0, 1e-5, label=LABEL)
    exact = predict_noise(double, x.double(), 1.0, 1e-5, label=LABEL)
    assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_calls_and_samples_are_counted() -> None:
    model = gaussian((3, 2))
    counted = CountCalls(model)
    assert (counted.calls, counted.samples) == (0, 0)
    assert torch.equal(counted(X, 0.8, 0.6), model(X, 0.8, 0.6))
    assert torch.equal(counted.noise(X[:3], 0.8, 0.6), model.noise(X[:3], 0.8, 0.6))
    assert (counted.calls, counted.samples) == (2, 7)
    plain = CountCalls(TwoGaussians())  # no noise() there: one call all the same, and cond passes
    assert_close(plain.noise(X, 0.8, 0.6, far=1.0), (X - 0.8 * TwoGaussians()(X, 0.8, 0.6, far=1.0)) / 0.6)
    assert (plain.calls, plain.samples) == (1, 4)
