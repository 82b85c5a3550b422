"""Classifier-free guidance, and denoisers that count."""

import pytest
import torch
from oracles import gaussian
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import ClassifierFree, CountCalls, Denoiser, precondition
from scorefield.sde_lib import VPSDE, predict_noise
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.denoiser import predict_x0
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


class Level(nn.Module):
    """An answer of the noise level and the conditioning alone, which counts its calls."""

    calls = 0

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        return x * expand(sigma, x) + (0.25 if label is None else 1.0 + label.to(x)[:, None, None])


def test_at_a_scale_of_one_it_is_the_conditional_denoiser_and_at_none_the_unconditional_one() -> None:
    """To the bit, by one call where all samples are alike, and with another scale for each sample."""
    x, level = X.float(), Level()
    scale = torch.tensor([0.0, 1.0, 1.7, 1.0])
    for predict in (predict_x0, predict_noise):
        low, high = predict(level, x, 0.8, 0.6), predict(level, x, 0.8, 0.6, label=LABEL)
        level.calls = 0
        assert torch.equal(predict(ClassifierFree(level, 1.0), x, 0.8, 0.6, label=LABEL), high)
        assert torch.equal(predict(ClassifierFree(level, 0.0), x, 0.8, 0.6, label=LABEL), low)
        assert level.calls == 2
        mixed = predict(ClassifierFree(level, 9.0), x, 0.8, 0.6, label=LABEL, guidance=scale)
        assert torch.equal(mixed[0], low[0]) and torch.equal(mixed[1::2], high[1::2])
        assert_close(mixed[2], low[2] + 1.7 * (high[2] - low[2]), rtol=1e-6, atol=1e-6)


def test_a_solver_slices_the_scales_of_samples() -> None:
    """Each sample is as with its own scale alone, to the bit, where a solver takes samples one by one too."""
    sde, scale = VPSDE(), torch.tensor([0.0, 1.0, 2.0, 3.5], dtype=torch.float64)
    ts = grids.log_snr(sde, 5)
    for solver in (DPMSolver(), Adaptive("bosh3", 1e-2, 1e-2)):
        x = solver(ClassifierFree(TwoGaussians(), 2.0), sde, X, ts, cond={"label": LABEL, "guidance": scale})
        for i in range(4):
            alone = ClassifierFree(TwoGaussians(), float(scale[i]))
            assert torch.equal(x[i : i + 1], solver(alone, sde, X[i : i + 1], ts, cond={"label": LABEL[i : i + 1]}))


@pytest.mark.parametrize("each_value", [False, True])
def test_an_interval_guides_its_noise_levels_alone(each_value: bool) -> None:
    """Of levels sigma / alpha it has the upper end and not the lower one; for a sample each, or a value each."""
    level, alpha, sigma = Level(), torch.full((4,), 0.5), torch.tensor([0.25, 0.26, 1.0, 1.1])
    guided, everywhere = ClassifierFree(level, 3.0, interval=(0.5, 2.0)), ClassifierFree(level, 3.0)
    if each_value:
        alpha, sigma = (each[:, None, None].expand(X.shape).contiguous() for each in (alpha, sigma))
    for cond in ({"label": LABEL}, {"label": LABEL, "guidance": torch.tensor([4.0, 1.0, 2.0, 5.0])}):
        found, all_guided = guided(X, alpha, sigma, **cond), everywhere(X, alpha, sigma, **cond)
        given = level(X, alpha, sigma, label=LABEL)
        assert torch.equal(found[1:3], all_guided[1:3]) and torch.equal(found[::3], given[::3])
        assert (all_guided[::3] != given[::3]).all()


def test_outside_of_the_interval_there_is_one_call() -> None:
    level = Level()
    guided = ClassifierFree(level, 3.0, interval=(0.5, 2.0))
    for sigma, calls in ((0.25, 1), (0.26, 2), (1.0, 2), (1.1, 1)):
        level.calls = 0
        guided(X, 0.5, sigma, label=LABEL)
        assert level.calls == calls


def test_guidance_leaves_out_the_keywords_that_it_is_told() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, a: float = 0.0, b: float = 0.0) -> Tensor:
            return x + a + 10 * b

    for without, added in ((("a",), 2 * 1 + 10), (("b",), 1 + 2 * 10), (("a", "b"), 2 * (1 + 10))):
        assert_close(ClassifierFree(Both(), 2.0, without)(X, 0.8, 0.6, a=1.0, b=1.0), X + added)
    with pytest.raises(ValueError, match="expected one of a, b for guidance, got none"):
        ClassifierFree(Both(), 2.0, ("a", "b"))(X, 0.8, 0.6)
    with pytest.raises(ValueError, match=r"0 <= low < high, got \(2.0, 1.0\)"):
        ClassifierFree(Both(), 2.0, interval=(2.0, 1.0))
