"""What the U-Net and the perceptron promise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import MLP, Denoiser, UNet, precondition
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.resampling import Downsample

pytestmark = pytest.mark.agreement


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


@pytest.mark.parametrize(("channels", "size", "n"), [(1, (28, 20), 2), (3, (8, 8), 1), (5, (4, 12), 2)], ids=str)
def test_unet_takes_any_channels_and_sizes_it_can_halve(channels: int, size: tuple[int, int], n: int) -> None:
    net = alive(unet(channels, multipliers=(1, 2, 2)))
    x, c_noise = inputs((channels, *size), n)
    answer = net(x, c_noise)
    assert answer.shape == x.shape
    assert answer.dtype == x.dtype
    assert bool(answer.isfinite().all())


@pytest.mark.parametrize("size", [(8, 6), (6, 8), (2, 2)], ids=str)
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
    a, s = torch.tensor([0.8, 0.6], dtype=torch.float64)
    single = denoiser(x, a, s)
    # Float32 through some ten layers of sums over up to 300 terms.
    assert_close(denoiser.double()(x.double(), a, s).float(), single, rtol=1e-4, atol=1e-4)
    assert single.dtype == torch.float32
