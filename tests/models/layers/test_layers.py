"""The layers that networks share, against their equations."""

import math

import pytest
import torch
from seeded import seeded_normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.nn.functional import conv2d, group_norm, interpolate, silu

from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.norm import GroupNorm, make_norm, norms
from scorefield.models.layers.resampling import Downsample, Fir, Upsample

pytestmark = pytest.mark.agreement

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def norm(channels: int = 8, groups: int = 2) -> GroupNorm:
    layer = GroupNorm(groups, channels, eps=1e-5).double()
    layer.weight.data = 1 + 0.3 * seeded_normal("weight", (channels,))
    layer.bias.data = 0.3 * seeded_normal("bias", (channels,))
    return layer


def images(format_: torch.memory_format = torch.channels_last, shape: tuple[int, ...] = (3, 8, 5, 4)) -> Tensor:
    return (0.7 + seeded_normal("images", shape)).contiguous(memory_format=format_)


# Normalisation


@formats
@pytest.mark.parametrize("frozen", [True, False])
def test_first_and_second_derivatives_of_a_norm_are_difference_quotients(
    format_: torch.memory_format, frozen: bool
) -> None:
    layer = norm().requires_grad_(not frozen).train(not frozen)
    x = images(format_, (2, 8, 2, 2)).requires_grad_()
    assert gradcheck(lambda x: silu(layer(x)), (x,), check_forward_ad=True)
    assert gradgradcheck(lambda x: silu(layer(x)), (x,))


@formats
def test_a_norm_takes_each_group_of_an_image_to_mean_zero_and_variance_one(format_: torch.memory_format) -> None:
    layer, x = norm(), images(format_)
    groups = x.reshape(3, 2, 4, 5, 4).flatten(2)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, correction=0, keepdim=True)
    expected = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    assert (layer(x) - expected).abs().max() < 1e-12


def test_a_norm_works_in_the_precision_of_its_weights() -> None:
    """Under autocast too, where images have 16 bits."""
    layer, x = norm().float(), images().bfloat16()
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x), layer(x.float()))


def test_many_gradients_at_once_are_each_their_own() -> None:
    """As `Divergence` takes them in reverse mode, without a graph and with one."""
    layer = norm().requires_grad_(False).eval()
    x = images(shape=(2, 8, 2, 2)).requires_grad_()
    y, g = layer(x), seeded_normal("g", (5, 2, 8, 2, 2))
    (batched,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    graph = vmap(lambda g: torch.autograd.grad(y, x, g, create_graph=True)[0])(g)
    for k, one in enumerate(g):
        expected = torch.autograd.grad(y, x, one, retain_graph=True)[0]
        assert (batched[k] - expected).abs().max() < 1e-12 and (graph[k] - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("channels", "settings", "groups"),
    [(128, {}, 32), (64, {}, 16), (64, {"smallest": 1}, 32), (6, {}, 1), (36, {}, 9), (48, {"groups": 8}, 8)],
)
def test_the_number_of_groups(channels: int, settings: dict[str, int], groups: int) -> None:
    assert make_norm(channels, **settings).num_groups == norms(**settings)(channels).num_groups == groups


# Residual blocks


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_residual_block_is_its_equation(scale_shift: bool, rescale: bool) -> None:
    block = ResidualBlock(8, 12, 5, scale_shift=scale_shift, rescale=rescale, resample=False).double()
    for name, weight in block.named_parameters():
        weight.data = 0.3 * seeded_normal(name, weight.shape)
    x, emb = images(shape=(3, 8, 4, 6)), seeded_normal("emb", (3, 5))
    means = x.reshape(3, 8, 2, 2, 3, 2).mean((3, 5))
    before = silu(group_norm(x, 2, block.norm_in.weight, block.norm_in.bias, 1e-6))
    h = block.conv_in(before.reshape(3, 8, 2, 2, 3, 2).mean((3, 5)))
    assert block.project is not None
    projected = block.project(silu(emb))[:, :, None, None]
    scale, shift = projected.chunk(2, 1) if scale_shift else (0, 0)
    h = group_norm(h + (0 if scale_shift else projected), 3, block.norm_out.weight, block.norm_out.bias, 1e-6)
    expected = block.shortcut(means) + block.conv_out(silu(h * (1 + scale) + shift))
    assert (block(x, emb) - expected * (0.5**0.5 if rescale else 1)).abs().max() < 1e-12


def test_a_block_drops_at_its_rate_before_the_second_convolution() -> None:
    torch.manual_seed(0)
    block, p = ResidualBlock(4, 4, None, dropout=0.1), 0.1
    seen: list[Tensor] = []
    block.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = images(shape=(1, 4, 128, 128)).float()
    block(x)
    block.eval()(x)
    dropped = seen[0] == 0
    torch.testing.assert_close(seen[0][~dropped], (seen[1] / (1 - p))[~dropped])
    # Binomial: 4 standard errors, a false alarm in 16,000.
    assert abs(float(dropped.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / dropped.numel())


def test_a_block_drops_in_training_alone() -> None:
    block = ResidualBlock(8, 8, None, dropout=0.5)
    torch.nn.init.normal_(block.conv_out.weight)
    x = images().float()
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
    with pytest.raises(ValueError, match="expected a dropout"):
        ResidualBlock(8, 8, None, dropout=1.0)


# Resampling

KERNELS = ((1.0, 1.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0, 3.0), (0.2, 1.0))


def by_hand(line: Tensor, kernel: tuple[float, ...], up: bool) -> Tensor:
    """A filter along one axis, sum by sum: a convolution of the spread-out or the whole line, half of it kept."""
    taps = torch.tensor(kernel, dtype=torch.float64) / sum(kernel)
    margin = len(kernel) // 2 - 1
    n, output = len(line), []
    for i in range(2 * n if up else n // 2):
        total = torch.zeros((), dtype=torch.float64)
        for m, tap in enumerate(taps):
            if up:  # pixel k is at 2k, and reaches 2k - margin .. 2k - margin + length - 1
                k, odd = divmod(i + margin - m, 2)
                total = total + (2 * tap * line[k] if not odd and 0 <= k < n else 0)
            else:
                k = 2 * i - margin + len(kernel) - 1 - m
                total = total + (tap * line[k] if 0 <= k < n else 0)
        output.append(total)
    return torch.stack(output)


@formats
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_filters_are_convolutions_along_both_axes(
    kernel: tuple[float, ...], up: bool, format_: torch.memory_format
) -> None:
    x = images(format_, (1, 2, 6, 4))
    resampled = Fir(kernel, up)(x)
    expected = torch.stack([torch.stack([by_hand(row, kernel, up) for row in channel]) for channel in x[0]])
    expected = torch.stack([torch.stack([by_hand(c, kernel, up) for c in channel.T]) for channel in expected])
    assert (resampled[0] - expected.transpose(1, 2)).abs().max() < 1e-6  # the taps are float32: 6e-8 of values up to 5


def test_a_filter_of_odd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="even length"):
        Fir((1, 2, 1))


@formats
def test_upsampling_is_the_nearest_neighbour_and_a_convolution(format_: torch.memory_format) -> None:
    layer = Upsample(8, 3).double()
    x = images(format_)
    expected = conv2d(interpolate(x, scale_factor=2.0, mode="nearest"), layer.conv.weight, layer.conv.bias, padding=1)
    assert (layer(x) - expected).abs().max() < 1e-12


def test_with_a_filter_a_convolution_and_resampling_commute_away_from_the_border() -> None:
    fir = (1.0, 3.0, 3.0, 1.0)
    x = images(shape=(1, 8, 12, 12))
    up, down = Upsample(8, fir=fir).double(), Downsample(8, fir=fir).double()
    expected = conv2d(Fir(fir, up=True)(x), up.conv.weight, up.conv.bias, padding=1)
    assert (up(x) - expected)[..., 3:-3, 3:-3].abs().max() < 1e-6
    # Filtered at full size and then every second value of the convolution.
    taps = torch.tensor(fir, dtype=torch.float64) / 8
    blurred = conv2d(x, torch.outer(taps, taps).expand(8, 1, 4, 4), padding=2, groups=8)
    expected = conv2d(blurred, down.conv.weight, down.conv.bias, stride=2)
    assert down(x).shape == (1, 8, 6, 6) and (down(x) - expected).abs().max() < 1e-6
