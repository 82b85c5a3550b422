"""The parts that networks share, against torch's own operations and against sums written out."""

import math

import pytest
import torch
from seeded import seeded_normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d, group_norm, interpolate, silu

from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.norm import GroupNorm
from scorefield.models.layers.resampling import Downsample, Fir, Upsample

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def norm(channels: int = 8, groups: int = 2) -> GroupNorm:
    layer = GroupNorm(groups, channels, eps=1e-5).double()
    layer.weight.data = 1 + 0.3 * seeded_normal("weight", (channels,))
    layer.bias.data = 0.3 * seeded_normal("bias", (channels,))
    return layer


def images(format_: torch.memory_format = torch.channels_last, shape: tuple[int, ...] = (3, 8, 5, 4)) -> Tensor:
    return (0.7 + seeded_normal("images", shape)).contiguous(memory_format=format_)


# Normalisation, silu and dropout


@formats
@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_values_and_gradients_are_those_of_torch(format_: torch.memory_format, act: bool, told: bool) -> None:
    ours, scale, shift = norm(), *(0.4 * seeded_normal(name, (3, 8)) for name in ("scale", "shift"))
    inputs = [images(format_), ours.weight.detach(), ours.bias.detach(), scale, shift]
    results = []
    for by_torch in (True, False):
        x, weight, bias, a, b = (tensor.clone().requires_grad_() for tensor in inputs)
        if by_torch:
            y = group_norm(x, 2, weight, bias, 1e-5)
            y = y * (1 + a[:, :, None, None]) + b[:, :, None, None] if told else y
            y = silu(y) if act else y
        else:
            ours.weight, ours.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
            weight, bias = ours.weight, ours.bias
            y = ours.activated(x, told=(a, b) if told else None, act=act)
        wanted = [x, weight, bias, *((a, b) if told else ())]
        results.append([y, *torch.autograd.grad(y, wanted, seeded_normal("g", y.shape))])
    for theirs, here in zip(*results, strict=True):
        assert (theirs - here).abs().max() < 1e-12 * theirs.abs().max()


def test_first_and_second_derivatives_are_the_differences_quotients() -> None:
    layer = norm()
    x = images(shape=(2, 8, 2, 2)).requires_grad_()
    assert gradcheck(layer.activated, (x,))
    assert gradgradcheck(layer.activated, (x,))
    layer.requires_grad_(False).eval()  # as in a likelihood
    assert gradcheck(layer.activated, (x,), check_forward_ad=True)
    assert gradgradcheck(layer.activated, (x,))


def test_a_norm_used_twice_has_the_gradients_of_both_uses_again_and_again() -> None:
    ours, theirs = norm(), torch.nn.GroupNorm(2, 8, eps=1e-5).double()
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (lambda x: ours.activated(x), lambda x: silu(theirs(x))):
        x = images(shape=(2, 8, 2, 2)).requires_grad_()
        parameters = list((theirs if found else ours).parameters())
        first = torch.autograd.grad(layer(layer(layer(x))).square().sum(), [x, *parameters], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, *parameters])
        found.append([*first, *second])
    for mine, expected in zip(*found, strict=True):
        assert (mine - expected).abs().max() < 1e-10 * expected.abs().max()


def test_other_shapes_are_normalised_as_torch_does() -> None:
    layer, theirs = norm().float(), torch.nn.GroupNorm(2, 8, eps=1e-5)
    theirs.load_state_dict(layer.state_dict())
    for shape in ((3, 8), (3, 8, 5), (2, 8, 3, 3, 3), (0, 8, 2, 2)):
        x = seeded_normal("x", shape).float()
        assert torch.equal(layer(x), theirs(x))
    half = norm().to(torch.bfloat16)
    x = images().bfloat16() + 3
    expected = group_norm(x.float(), 2, half.weight.float(), half.bias.float(), 1e-5)
    assert (half(x).float() - expected).abs().max() < 0.03  # 8 bits of values up to 4


def test_many_gradients_at_once_are_each_their_own() -> None:
    layer = norm().requires_grad_(False)
    x = images(shape=(2, 8, 2, 2)).requires_grad_()
    y, g = layer.activated(x), seeded_normal("g", (5, 2, 8, 2, 2))
    (together,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    for row, one in zip(together, g, strict=True):
        assert (row - torch.autograd.grad(y, x, one, retain_graph=True)[0]).abs().max() < 1e-12


def test_dropout_drops_each_value_at_its_rate_and_apart_from_its_neighbours() -> None:
    torch.manual_seed(0)
    p, x = 0.1, torch.ones(1, 4, 512, 512).contiguous(memory_format=torch.channels_last)
    layer = GroupNorm(1, 4)
    layer.weight.data.zero_()
    layer.bias.data.fill_(1.0)
    y = layer.activated(x, p)
    kept = silu(torch.ones(())) / (1 - p)
    dropped = y == 0
    assert torch.allclose(y[~dropped], kept)
    # Binomial: 4 standard errors, a false alarm in 16,000.
    n = dropped.numel()
    error = math.sqrt(p * (1 - p) / n)
    assert abs(float(dropped.double().mean()) - p) < 4 * error
    for pairs in (dropped[..., 1:] & dropped[..., :-1], dropped[:, 1:] & dropped[:, :-1]):
        together = p * p
        assert abs(float(pairs.double().mean()) - together) < 4 * math.sqrt(together * (1 - together) / pairs.numel())
    assert not bool((layer.activated(x, 0.0) == 0).any())


def test_the_gradient_passes_what_was_kept() -> None:
    torch.manual_seed(0)
    x = images().requires_grad_()
    layer = norm()
    y = layer.activated(x, 0.4)
    mask = (y != 0).double() / (1 - 0.4)
    assert 0.2 < float((mask == 0).double().mean()) < 0.6
    g = seeded_normal("g", y.shape)
    (ours,) = torch.autograd.grad(y, x, g)
    (theirs,) = torch.autograd.grad(silu(group_norm(x, 2, layer.weight, layer.bias, 1e-5)) * mask, x, g)
    assert (ours - theirs).abs().max() < 1e-12 * theirs.abs().max()


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
