"""Classifier-free guidance, and denoisers that count."""

import numpy as np
import pytest
import torch
from oracles import gaussian
from seeded import seeded
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import ADM, MLP, NCSN, VDM, ClassifierFree, CountCalls, Denoiser, DiT, NCSNpp, UNet, precondition
from scorefield.models.guidance import Auto
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


def random_weights(net: nn.Module) -> nn.Module:
    net.load_state_dict({name: seeded(name, value.shape) for name, value in net.state_dict().items()})
    return net


NETWORKS = {
    "mlp": lambda: MLP((3, 2), width=16, blocks=1, num_classes=3),
    "unet": lambda: UNet(1, width=4, multipliers=(1,), blocks=1, attention=(), middle_attention=False, num_classes=3),
    "dit": lambda: DiT(1, patch=4, width=12, depth=1, heads=1, num_classes=3),
    "vdm": lambda: VDM(1, width=4, blocks=1, num_classes=3),
    "adm": lambda: ADM(1, width=4, multipliers=(1,), blocks=1, attention=(), num_classes=3),
    "ncsnpp": lambda: NCSNpp(1, width=4, multipliers=(1,), blocks=1, attention=(), num_classes=3),
    "ncsn": lambda: NCSN(1, width=4, sigmas=(1.0, 0.1), num_classes=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_evaluations_are_one_batch(name: str) -> None:
    """Of 2B samples, with the numbers of two calls; a class for each sample, and a noise level each."""
    net = random_weights(NETWORKS[name]()).double().eval().requires_grad_(False)
    x = X if name == "mlp" else torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=X.dtype)
    denoiser = Denoiser(net, precondition.eps)
    alpha, sigma = torch.full((4,), 0.8, dtype=X.dtype), torch.tensor([0.6, 0.5, 0.4, 0.3], dtype=X.dtype)
    low, high = denoiser(x, alpha, sigma), denoiser(x, alpha, sigma, label=LABEL)
    counted = CountCalls(denoiser)
    found = ClassifierFree(counted, 3.0)(x, alpha, sigma, label=LABEL)
    assert (counted.calls, counted.samples) == (1, 8)
    assert float((high - low).abs().max()) > 1e-3
    assert_close(found, low + 3 * (high - low), rtol=1e-11, atol=1e-11)


AT = (X, torch.full((4,), 0.8, dtype=X.dtype), torch.tensor([0.6, 0.4, 0.2, 0.1], dtype=X.dtype))


@pytest.mark.parametrize(("phi", "eta", "r"), [(0.7, 1.0, None), (0.0, 0.0, None), (0.0, 1.0, 0.5), (0.5, 0.3, 0.5)])
def test_corrections_are_those_of_their_papers(phi: float, eta: float, r: float | None) -> None:
    """By the formulae, sample by sample in numpy; x0 and noise agree, and scales 0 and 1 have no correction."""
    denoiser, scale = TwoGaussians(), torch.tensor([0.0, 1.0, 3.0, 2.0], dtype=X.dtype)
    guided = ClassifierFree(denoiser, 9.0, rescale=phi, parallel=eta, norm=r)
    found = guided(*AT, label=LABEL, guidance=scale)
    weak, strong = denoiser(*AT).numpy(), denoiser(*AT, label=LABEL).numpy()
    assert np.array_equal(found[0], weak[0]) and np.array_equal(found[1], strong[1])
    for i in (2, 3):
        d, unit = strong[i] - weak[i], strong[i] / np.sqrt((strong[i] ** 2).sum())
        d = d if r is None else d * min(1.0, r / np.sqrt((d**2).sum()))
        along = (d * unit).sum() * unit
        one = strong[i] + (float(scale[i]) - 1) * (d - along + eta * along)
        one = one * (phi * strong[i].std() / one.std() + 1 - phi)
        assert_close(found[i], torch.as_tensor(one), rtol=1e-12, atol=1e-12)
    noise = predict_noise(guided, *AT, label=LABEL, guidance=scale)
    x, _, sigma = AT
    assert_close(noise, (x - 0.8 * found) / expand(sigma, x), rtol=1e-11, atol=1e-11)


def test_a_sample_inside_of_the_interval_has_both_evaluations_for_all() -> None:
    level, alpha = Level(), torch.full((4,), 0.5)
    guided = ClassifierFree(level, 3.0, interval=(0.5, 2.0))
    for sigma, calls in (([0.1, 0.2, 1.1, 3.0], 1), ([0.1, 0.2, 0.9, 3.0], 2)):
        level.calls = 0
        guided(X, alpha, torch.tensor(sigma), label=LABEL)
        assert level.calls == calls


def test_autoguidance_leads_away_from_the_bad_denoiser() -> None:
    good, bad, at = gaussian((3, 2)), TwoGaussians(), (X, 0.8, 0.6)
    d1, d0 = good(*at), bad(*at, far=0.4)
    assert_close(Auto(good, lambda *a: bad(*a, far=0.4), 2.5)(*at), d1 + 1.5 * (d1 - d0), rtol=1e-12, atol=1e-12)
    assert torch.equal(Auto(good, good, 2.5)(*at), d1)
    counted = CountCalls(bad)
    assert torch.equal(Auto(good, counted, 2.5, interval=(1.0, 2.0))(*at), d1) and counted.calls == 0


def test_the_twist_of_a_tilted_law_has_both_estimates_and_their_powers() -> None:
    denoiser, scale = TwoGaussians(), torch.tensor([0.0, 1.0, 3.0, 2.0], dtype=X.dtype)
    guided, cond = ClassifierFree(denoiser, 3.0), {"label": LABEL, "guidance": scale}
    twist = guided.twist(*AT, **cond)
    assert torch.equal(twist.guided, guided(*AT, **cond)) and torch.equal(twist.log_potential, torch.zeros(4).to(X))
    (p0, d0), (p1, d1) = twist.factors
    assert_close((p0, p1), (1 - scale, scale))
    assert_close((d0, d1), (denoiser(*AT), denoiser(*AT, label=LABEL)))
    end, potential = guided.finish(*AT, **cond)
    assert torch.equal(end, twist.guided) and not potential.any()


@pytest.mark.parametrize("wrong", [{"rescale": 1.5}, {"parallel": float("nan")}, {"norm": 0.0}])
def test_corrections_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^expected [^\n]*got[^\n]*$"):
        ClassifierFree(TwoGaussians(), 2.0, **wrong)
