"""Denoisers from networks that know the answer; guidance; and what the U-Net and the perceptron promise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import SHAPES, gaussian
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import MLP, ClassifierFree, Conditioned, Denoiser, UNet, precondition
from scorefield.models.layers.blocks import Attention, ResidualBlock
from scorefield.models.layers.resampling import Downsample
from scorefield.models.precondition import Precondition
from scorefield.sde_lib import predict_noise

# Variance preserving, exploding, straight-line, and EDM's ends: alpha and sigma.
SCALES = ((0.8, 0.6), (0.999999, 0.0014), (0.01, 0.99995), (1.0, 20.0), (1.0, 0.002), (0.3, 0.7), (0.999, 0.001))

SIGMA_DATA = 0.7


def edm_target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """Karras et al. 2022, Eq. 8, (x0 - c_skip y) / c_out at y = x / alpha and noise sigma / alpha, as they print it."""
    y, level = x0 + s / a * eps, s / a
    c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
    c_out = level * SIGMA_DATA / torch.sqrt(SIGMA_DATA**2 + level**2)
    return (x0 - c_skip * y) / c_out


# What each parameterisation asks its network for, given the x0 and eps that made x: the papers' targets.
TARGETS: dict[str, tuple[Precondition, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]] = {
    "score": (precondition.score, lambda x0, eps, a, s: -eps / s),  # of N(alpha x0, sigma^2) at x
    "eps": (precondition.eps, lambda x0, eps, a, s: eps),
    "x0": (precondition.x0, lambda x0, eps, a, s: x0),
    "v": (precondition.v, lambda x0, eps, a, s: (a * eps - s * x0) / torch.sqrt(a**2 + s**2)),
    "flow": (precondition.flow, lambda x0, eps, a, s: eps - x0),
    "edm": (precondition.edm(SIGMA_DATA), edm_target),
}
targets = pytest.mark.parametrize(("precondition", "target"), TARGETS.values(), ids=TARGETS.keys())
preconditions = pytest.mark.parametrize("precondition", [p for p, _ in TARGETS.values()], ids=TARGETS.keys())
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
scales = pytest.mark.parametrize(("alpha", "sigma"), SCALES)


class Says(nn.Module):
    """A network with one answer, which remembers what it was called with."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        self.seen = {"x": x, "c_noise": c_noise, **cond}
        return self.answer


def draws(shape: tuple[int, ...], n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, *shape, generator=generator, dtype=torch.float64).unbind(0)
    return x0, eps


def numbers(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


# Parameterisations


@shapes
@scales
@targets
def test_a_network_that_knows_its_target_gives_x0_and_eps(
    precondition: Precondition, target: Callable[..., Tensor], alpha: float, sigma: float, shape: tuple[int, ...]
) -> None:
    x0, eps = draws(shape)
    a, s = numbers(alpha, sigma)
    x = a * x0 + s * eps
    denoiser = Denoiser(Says(target(x0, eps, a, s)), precondition)
    # D undoes x = alpha x0 + sigma eps: float64's 1e-16 of the larger term, by alpha for x0 and by sigma for eps.
    assert_close(denoiser(x, a, s), x0, rtol=0, atol=1e-14 * max(1.0, sigma) / min(1.0, alpha))
    assert_close(denoiser.noise(x, a, s), eps, rtol=0, atol=1e-14 * max(1.0, alpha) / min(1.0, sigma))


@targets
def test_scales_may_differ_within_a_batch(precondition: Precondition, target: Callable[..., Tensor]) -> None:
    x0, eps = draws((3, 2), n=len(SCALES))
    alphas, sigmas = torch.tensor(SCALES, dtype=torch.float64).T
    a, s = alphas[:, None, None], sigmas[:, None, None]
    x = a * x0 + s * eps
    denoiser = Denoiser(Says(target(x0, eps, a, s)), precondition)
    assert_close(denoiser(x, alphas, sigmas), x0, rtol=0, atol=1e-11)
    assert_close(denoiser.noise(x, alphas, sigmas), eps, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="expected a scale of shape"):
        denoiser(x, alphas[:2], sigmas[:2])


@scales
@preconditions
def test_every_parameterisation_tells_the_network_minus_an_eighth_of_the_log_snr(
    precondition: Precondition, alpha: float, sigma: float
) -> None:
    c_noise = precondition(*numbers(alpha, sigma))[3]
    assert float(c_noise) == pytest.approx(-(2 * math.log(alpha / sigma)) / 8, rel=1e-12, abs=1e-15)


@scales
@preconditions
def test_the_network_sees_c_in_x_and_c_noise_of_each_sample(
    precondition: Precondition, alpha: float, sigma: float
) -> None:
    x0, _ = draws((2, 3))
    a, s = numbers(alpha, sigma)
    net = Says(x0.float())
    Denoiser(net, precondition)(x0.float(), a, s, label=torch.arange(3), text="as is")
    c_in, _, _, c_noise = precondition(a, s)
    assert_close(net.seen["x"], c_in.float() * x0.float())
    assert_close(net.seen["c_noise"], c_noise.float().expand(3))
    assert net.seen["x"].dtype == net.seen["c_noise"].dtype == torch.float32
    assert net.seen["label"].tolist() == [0, 1, 2]
    assert net.seen["text"] == "as is"


@scales
@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
def test_the_input_of_the_network_has_unit_variance_when_the_data_has(name: str, alpha: float, sigma: float) -> None:
    c_in = (
        precondition.edm(1.0)(*numbers(alpha, sigma))[0]
        if name == "edm"
        else TARGETS[name][0](*numbers(alpha, sigma))[0]
    )
    assert float(c_in) * math.hypot(alpha, sigma) == pytest.approx(1.0, rel=1e-12)


@scales
def test_edm_is_the_papers_table_at_alpha_one(alpha: float, sigma: float) -> None:
    """Karras et al. 2022, Table 1, last column, at their noise level sigma / alpha and their input x / alpha."""
    level, data = sigma / alpha, SIGMA_DATA
    c_in, c_skip, c_out, c_noise = (float(c) for c in precondition.edm(data)(*numbers(alpha, sigma)))
    assert c_in * alpha == pytest.approx(1 / math.sqrt(data**2 + level**2), rel=1e-12)
    assert c_skip * alpha == pytest.approx(data**2 / (data**2 + level**2), rel=1e-12)
    assert c_out == pytest.approx(level * data / math.sqrt(data**2 + level**2), rel=1e-12)
    assert c_noise == pytest.approx(math.log(level) / 4, rel=1e-12)


def test_edm_assumes_half_a_unit_of_data() -> None:
    assert_close(precondition.edm()(*numbers(0.8, 0.6)), precondition.edm(0.5)(*numbers(0.8, 0.6)))


@scales
@preconditions
def test_noise_is_x_minus_alpha_d_over_sigma(precondition: Precondition, alpha: float, sigma: float) -> None:
    x, answer = draws((3, 8, 8))
    a, s = numbers(alpha, sigma)
    denoiser = Denoiser(Says(answer), precondition)
    by_hand = (x - alpha * denoiser(x, a, s)) / sigma
    # The subtraction by hand loses 1e-16 / sigma of x and of alpha D.
    atol = 1e-14 * (1 + float((alpha * denoiser(x, a, s)).abs().max())) / min(sigma, 1.0)
    assert_close(denoiser.noise(x, a, s), by_hand, rtol=1e-12, atol=atol)
    assert_close(predict_noise(denoiser, x, a, s), denoiser.noise(x, a, s), rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [1.0, math.sqrt(1 - 1e-10), 1 - 1e-5], ids=("ve", "vp", "line"))
@pytest.mark.parametrize("name", ["score", "eps", "v", "flow", "edm"])
def test_float32_noise_keeps_its_digits_at_little_noise(name: str, alpha: float) -> None:
    """At sigma = 1e-5 the plain (x - alpha D) / sigma would be off by 6e-8 / 1e-5, a percent of eps."""
    x0, eps = draws((3, 8, 8))
    a, s = numbers(alpha, 1e-5)
    prediction, target = TARGETS[name]
    answer = target(x0, eps, a, s)
    x = (a * x0 + s * eps).float()
    single = Denoiser(Says(answer.float()), prediction).noise(x, a, s)
    double = Denoiser(Says(answer.float().double()), prediction).noise(x.double(), a, s)
    assert single.dtype == torch.float32
    # x and F count, each times a coefficient of order one, both rounded to 6e-8: sums of 4.
    assert_close(single.double(), double, rtol=1e-6, atol=1e-6)


def test_float32_noise_keeps_its_digits_when_the_scales_are_float32_too() -> None:
    x0, eps = draws((3, 8, 8))
    a, s = torch.tensor(1.0), torch.tensor(1e-5)
    for name in ("score", "eps", "v", "flow", "edm"):
        prediction, target = TARGETS[name]
        x, answer = (x0 + s * eps).float(), target(x0, eps, a, s).float()
        double = Denoiser(Says(answer.double()), prediction).noise(x.double(), a.double(), s.double())
        assert_close(Denoiser(Says(answer), prediction).noise(x, a, s).double(), double, rtol=1e-6, atol=1e-6)


def test_own_preconditions_and_other_precisions_are_welcome() -> None:
    def halved(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return alpha / 2, sigma, 2 * sigma, alpha

    x, a, s = torch.ones(2, 3), torch.tensor(0.8), torch.tensor(0.6)
    net = Says(torch.full((2, 3), 0.5, dtype=torch.bfloat16))
    assert_close(Denoiser(net, halved)(x, a, s), torch.full((2, 3), 0.6 + 1.2 * 0.5))
    assert_close(net.seen["x"], torch.full((2, 3), 0.4))
    single = Denoiser(Says(torch.ones(2, 3)), halved)
    assert single(x.bfloat16(), a, s).dtype == single.noise(x.bfloat16(), a, s).dtype == torch.bfloat16  # as x


@preconditions
def test_gradients_reach_the_network(precondition: Precondition) -> None:
    net = MLP((2,), width=16, blocks=1)
    denoiser = Denoiser(net, precondition)
    denoiser(torch.ones(3, 2), torch.tensor(0.8), torch.tensor(0.6)).sum().backward()
    assert net.head.bias.grad is not None
    assert float(net.head.bias.grad.abs().sum()) > 0


# Guidance


class TwoGaussians(nn.Module):
    """E[x0 | x, label] of a Gaussian a label; without one, that of a third."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        shift = torch.zeros(len(x)) if label is None else 1.0 + label
        return gaussian((3, 2))(x - shift.to(x)[:, None, None], alpha, sigma)


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.5, 3.0, -1.0])
def test_classifier_free_guidance_is_the_line_through_both_denoisers(scale: float) -> None:
    x, _ = draws((3, 2), n=4)
    a, s = numbers(0.8, 0.6)
    label, denoiser = torch.tensor([0, 1, 1, 0]), TwoGaussians()
    without, with_label = denoiser(x, a, s), denoiser(x, a, s, label=label)
    guided = ClassifierFree(denoiser, label, scale)
    assert_close(guided(x, a, s), (1 - scale) * without + scale * with_label, rtol=1e-12, atol=1e-13)
    noise = (1 - scale) * predict_noise(denoiser, x, a, s) + scale * predict_noise(denoiser, x, a, s, label=label)
    assert_close(predict_noise(guided, x, a, s), noise, rtol=1e-12, atol=1e-13)


def test_guidance_at_zero_and_one_is_each_denoiser() -> None:
    x, _ = draws((3, 2), n=2)
    a, s = numbers(0.8, 0.6)
    label, denoiser = torch.tensor([0, 1]), TwoGaussians()
    assert_close(ClassifierFree(denoiser, label, 0.0)(x, a, s), denoiser(x, a, s), rtol=0, atol=0)
    # without + (with - without): one rounding.
    assert_close(ClassifierFree(denoiser, label, 1.0)(x, a, s), denoiser(x, a, s, label=label), rtol=1e-15, atol=1e-15)


class Labelled(nn.Module):
    """A network whose answer a label moves."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.answer if label is None else self.answer + 0.1 * label.to(x).reshape(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize(
    "wrap",
    [lambda d, label: Conditioned(d, label=label), lambda d, label: ClassifierFree(d, label, 2.0)],
    ids=("conditioned", "classifier-free"),
)
def test_wrapped_denoisers_keep_the_digits_of_the_noise(wrap: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    """As the denoiser they wrap does, at sigma = 1e-5 in float32."""
    x0, eps = draws((3, 8, 8))
    a, s = numbers(1.0, 1e-5)
    x, label = (x0 + s * eps).float(), torch.tensor([0, 1, 2])
    single, double = (
        Denoiser(Labelled(eps.float().to(dtype)), precondition.eps) for dtype in (torch.float32, torch.float64)
    )
    found = predict_noise(wrap(single, label), x, a, s)
    assert_close(found.double(), predict_noise(wrap(double, label), x.double(), a, s), rtol=1e-5, atol=1e-5)


def test_conditioned_passes_its_conditioning() -> None:
    x0, eps = draws((3, 2))
    a, s = numbers(0.8, 0.6)
    net = Says(eps)
    conditioned = Conditioned(Denoiser(net, precondition.eps), label=torch.tensor([2, 0, 1]), text="a digit")
    x = a * x0 + s * eps
    assert_close(conditioned(x, a, s), x0)
    assert net.seen["label"].tolist() == [2, 0, 1]
    assert net.seen["text"] == "a digit"
    net.seen = {}
    assert_close(conditioned.noise(x, a, s), eps)
    assert net.seen["label"].tolist() == [2, 0, 1]
    assert net.seen["text"] == "a digit"
    # And of a denoiser that has no `noise`.
    plain = Conditioned(TwoGaussians(), label=torch.tensor([0, 1, 0]))
    label = torch.tensor([0, 1, 0])
    assert_close(plain.noise(x, a, s), predict_noise(TwoGaussians(), x, a, s, label=label), rtol=0, atol=0)


# Networks


def alive(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every weight random, as none is at the start of its training; frozen, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 1 / math.sqrt(max(weight[0].numel(), 8)), generator=generator)
    return net.eval().requires_grad_(False)


def unet(channels: int = 3, **settings: Any) -> UNet:
    return UNet(channels, **{"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), **settings})


NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "unet": (lambda **settings: unet(3, **settings), (3, 8, 6)),
    "mlp": (lambda **settings: MLP((5, 2), width=32, blocks=2, **settings), (5, 2)),
}
networks = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


def inputs(shape: tuple[int, ...], n: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    return x, torch.linspace(-1, 1, n, dtype=dtype)


def test_unet_of_ddpms_cifar10_has_its_parameters() -> None:
    """Ho et al. 2020, Section 4 and Appendix B: 35.7 million; their code's variables add up to 35,746,307."""
    with torch.device("meta"):
        net = UNet(channels=3)
    assert sum(weight.numel() for weight in net.parameters()) == 35_746_307


@networks
def test_networks_start_as_nothing(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    x, c_noise = inputs(shape)
    assert_close(make()(x, c_noise), torch.zeros_like(x), rtol=0, atol=0)


@networks
def test_the_answer_depends_on_the_input_the_noise_and_the_label(
    make: Callable[..., nn.Module], shape: tuple[int, ...]
) -> None:
    net = alive(make(num_classes=4))
    x, c_noise = inputs(shape)
    label = torch.tensor([0, 1, 2])
    answer = net(x, c_noise, label)
    assert answer.shape == x.shape
    assert float(answer.std()) > 0.01
    for other in (net(x + 0.1, c_noise, label), net(x, c_noise + 0.1, label), net(x, c_noise, label + 1)):
        assert bool(((other - answer).flatten(1).abs().amax(1) > 1e-4).all())


@networks
def test_no_label_is_the_unknown_class(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    net = alive(make(num_classes=4))
    x, c_noise = inputs(shape)
    assert_close(net(x, c_noise), net(x, c_noise, torch.full((3,), 4)), rtol=0, atol=0)
    mixed = net(x, c_noise, torch.tensor([4, 1, 4]))
    assert_close(mixed[::2], net(x, c_noise)[::2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed[1], net(x, c_noise)[1], atol=1e-4)


@networks
def test_samples_of_a_batch_are_independent(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    net = alive(make(num_classes=4)).double()
    x, c_noise = inputs(shape, n=4, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3])
    together = net(x, c_noise, label)
    for i in range(4):
        # Batches of other sizes may be summed in another order: float64's roundings through ten layers.
        assert_close(net(x[i : i + 1], c_noise[i : i + 1], label[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-11)
    changed = x.clone()
    changed[0] += 100
    assert_close(net(changed, c_noise, label)[1:], together[1:], rtol=1e-10, atol=1e-11)


@networks
def test_forward_mode_derivatives_agree_with_finite_differences(
    make: Callable[..., nn.Module], shape: tuple[int, ...]
) -> None:
    net = alive(make()).double()
    x, c_noise = inputs(shape, dtype=torch.float64)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    _, along = torch.func.jvp(lambda y: net(y, c_noise), (x,), (v,))
    h = 1e-5
    central = (net(x + h * v, c_noise) - net(x - h * v, c_noise)) / (2 * h)
    # Truncation of h^2 times third derivatives (of order 10), rounding of 1e-16 / h.
    assert_close(along, central, rtol=1e-6, atol=1e-7)
    assert float(along.abs().max()) > 0.01
    _, in_noise = torch.func.jvp(lambda c: net(x, c), (c_noise,), (torch.ones_like(c_noise),))
    central = (net(x, c_noise + h) - net(x, c_noise - h)) / (2 * h)
    # Frequencies of 32: third derivatives of 32^3, and h^2 times that is 3e-6.
    assert_close(in_noise, central, rtol=1e-4, atol=1e-5)


@networks
def test_reverse_mode_is_the_transpose_of_forward_mode(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    net = alive(make()).double()
    x, c_noise = inputs(shape, dtype=torch.float64)
    u, v = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    _, along = torch.func.jvp(lambda y: net(y, c_noise), (x,), (v,))
    (back,) = torch.func.vjp(lambda y: net(y, c_noise), x)[1](u)
    assert float((u * along).sum()) == pytest.approx(float((back * v).sum()), rel=1e-10)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(28, 20), (8, 8), (4, 12)], ids=str)
@pytest.mark.parametrize("n", [1, 2])
def test_unet_takes_any_channels_and_sizes_it_can_halve(channels: int, size: tuple[int, int], n: int) -> None:
    net = alive(unet(channels, multipliers=(1, 2, 2)))
    x, c_noise = inputs((channels, *size), n)
    answer = net(x, c_noise)
    assert answer.shape == x.shape
    assert answer.dtype == x.dtype
    assert bool(answer.isfinite().all())


@pytest.mark.parametrize("size", [(8, 6), (6, 8), (7, 8), (2, 2)], ids=str)
def test_unet_refuses_sizes_it_cannot_halve(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"divisible by 4, got \({size[0]}, {size[1]}\)"):
        unet(multipliers=(1, 2, 2))(torch.zeros(1, 3, *size), torch.zeros(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"heads": 4},
        {"width": 12},
        {"width": 6, "attention": ()},
        {"multipliers": (1,), "attention": (0,)},
        {"blocks": 3, "attention": (0, 1)},
        {"multipliers": (2, 1, 3), "attention": (2,)},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_unet_of_other_settings_works(settings: dict[str, Any]) -> None:
    net = alive(unet(**settings))
    x, c_noise = inputs((3, 8, 8), 2)
    assert bool(net(x, c_noise).isfinite().all())
    assert float(net(x, c_noise).std()) > 0


def test_dropout_drops_in_training_alone() -> None:
    net, (x, c_noise) = alive(unet(dropout=0.5)), inputs((3, 8, 8))
    torch.manual_seed(0)
    assert_close(net(x, c_noise), net(x, c_noise), rtol=0, atol=0)
    net.train()
    assert not torch.allclose(net(x, c_noise), net(x, c_noise), atol=1e-4)


def test_attention_is_torchs_own() -> None:
    """Against scaled_dot_product_attention on the same projections."""
    layer = alive(Attention(8, heads=2)).double()
    x, _ = inputs((8, 3, 5), 2, torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).reshape(2, 3, 2, 4, 15).transpose(-1, -2).unbind(1)
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(2, 8, 3, 5)
    assert_close(layer(x), x + layer.project(mixed), rtol=1e-11, atol=1e-12)


def test_residual_branches_start_as_nothing() -> None:
    x, embedding = torch.randn(2, 3, 8, 4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(3, 5)
    assert_close(ResidualBlock(8, 8, 5, dropout=0.0)(x[0], embedding), x[0], rtol=0, atol=0)
    wider = ResidualBlock(8, 12, 5, dropout=0.0)
    assert_close(wider(x[1], embedding), wider.shortcut(x[1]), rtol=0, atol=0)
    assert_close(Attention(8)(x[0]), x[0], rtol=0, atol=0)


def test_downsampling_pads_below_and_to_the_right() -> None:
    """As DDPM: a kernel's corners pick every second pixel from the first, and zeros beyond the last."""
    layer, x = Downsample(1).requires_grad_(False), torch.arange(1.0, 25.0).reshape(1, 1, 4, 6)
    for row, column, picked in ((0, 0, x[..., ::2, ::2]), (1, 1, x[..., 1::2, 1::2])):
        layer.conv.weight.zero_()[0, 0, row, column] = 1
        assert_close(layer(x) - layer.conv.bias, picked)
    layer.conv.weight.zero_()[0, 0, 2, 2] = 1
    beyond = (layer(x) - layer.conv.bias)[0, 0]
    assert_close(beyond, torch.tensor([[15.0, 17.0, 0.0], [0.0, 0.0, 0.0]]), rtol=0, atol=1e-5)


def test_unet_sees_the_whole_image() -> None:
    """With attention in the middle, every output pixel depends on every input pixel."""
    net = alive(unet(1)).double()
    x, c_noise = inputs((1, 16, 16), 1, torch.float64)
    far = x.clone()
    far[..., -1, -1] += 1.0
    assert bool(((net(far, c_noise) - net(x, c_noise)).abs() > 1e-9).all())


@networks
def test_every_weight_learns(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    net = alive(make(num_classes=3)).double().requires_grad_()
    x, c_noise = inputs(shape, dtype=torch.float64)
    net(x, c_noise, torch.tensor([0, 1, 2])).square().sum().backward()
    idle = [
        name for name, weight in net.named_parameters() if weight.grad is None or float(weight.grad.abs().max()) == 0
    ]
    assert not idle


@networks
def test_networks_make_denoisers_in_float32_and_float64(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    denoiser = Denoiser(alive(make()), precondition.eps)
    x, _ = inputs(shape)
    a, s = numbers(0.8, 0.6)
    single = denoiser(x, a, s)
    # Float32 through some ten layers of sums over up to 300 terms.
    assert_close(denoiser.double()(x.double(), a, s).float(), single, rtol=1e-4, atol=1e-4)
    assert single.dtype == torch.float32
