"""RefineNet (Lin et al. 2017, arXiv 1611.06612) as NCSN and NCSNv2 use it: ResNet stages down, refining blocks up.

Everything takes `rows (B, R)` besides the maps: the weights of the rows in the tables of the normalisations, see
`InstanceNormPlus`. A normalisation is made by a function of its number of channels.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, interpolate, layer_norm

from scorefield.models.layers.initial import other_than_images

Norm = Callable[[int], nn.Module]
# Channels of each stage, in widths (Song and Ermon 2020, Appendix B).
FEATURES = {4: (1, 2, 2, 2), 5: (1, 2, 2, 4, 4), 6: (1, 2, 2, 2, 4, 4)}


def residual_stages(norm: Norm, width: int, depth: int) -> nn.ModuleList:
    """The stages: the first at full size, each next at half, the last two dilated by 2 and 4 instead of smaller.

    Raises:
        ValueError: if there is no network of this depth.
    """
    if depth not in FEATURES:
        raise ValueError(f"expected a depth of {', '.join(map(str, FEATURES))} stages, got {depth}")
    features = [width * f for f in FEATURES[depth]]

    def stage(before: int, after: int, dilation: int, opens: bool) -> Chain:
        return Chain([DilatedBlock(norm, before, after, dilation, opens), DilatedBlock(norm, after, after, dilation)])

    dilations = [1] * (depth - 2) + [2, 4]
    pairs = zip([width, *features], features, dilations, strict=False)
    return nn.ModuleList(stage(*pair, opens=i > 0) for i, pair in enumerate(pairs))


def refining_blocks(norm: Norm, pool: nn.Module, width: int, depth: int) -> nn.ModuleList:
    """One for each stage, deepest first: it merges the stage with the one before, and has the width of the next."""
    features = [width * f for f in (1, *FEATURES[depth])]
    return nn.ModuleList(
        RefineBlock(norm, pool, 1 if i == depth else 2, features[i], features[i - 1], units_out=3 if i == 1 else 1)
        for i in range(depth, 0, -1)
    )


def cascade(stages: nn.ModuleList, refine: nn.ModuleList, h: Tensor, rows: Tensor) -> Tensor:
    """Down the stages, then up through the refining blocks: each takes its stage and the output of the deeper ones."""
    skips = []
    for stage in stages:
        h = stage(h, rows)
        skips.append(h)
    deepest, *shallower = refine
    h = deepest([skips.pop()], rows)
    for block in shallower:
        h = block([skips.pop(), h], rows)
    return h


def check_images(x: Tensor, channels: int, depth: int) -> None:
    """That a network of this depth can take x.

    Raises:
        ValueError: if x is not (B, channels, H, W), or H or W is not a multiple of 2^(depth - 3), and at least twice.
    """
    stride = 2 ** (depth - 3)
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"expected images (B, {channels}, H, W), got {tuple(x.shape)}: {other_than_images(x)}")
    if any(size % stride or size < 2 * stride for size in x.shape[2:]):
        raise ValueError(
            f"expected a height and width divisible by {stride} and at least {2 * stride}, got {tuple(x.shape[2:])}: "
            "crop or pad the images"
        )


class InstanceNormPlus(nn.Module):
    """Instance normalisation++, which keeps the means it takes away, relative to each other.

        gamma ((x - mu) / s + a (mu - m) / v) + beta

    mu and s^2 are a channel's mean and variance over the pixels. m and v^2 are the mean and (unbiased) variance of mu
    over the channels. gamma, a and beta are a mixture of the rows of a table, with the weights `rows (B, levels +
    labels)`. With one level, and `rows` of one, the layer is unconditional (Song and Ermon 2019, Appendix A.1, and
    2020, Appendix B). As in their code, gamma multiplies both terms, and 1e-5 is added to each variance.
    """

    def __init__(self, levels: int, labels: int, features: int) -> None:
        super().__init__()
        scales, zeros = torch.empty(levels, 2 * features).normal_(1.0, 0.02), torch.zeros(levels, features)
        table = torch.cat([scales, zeros], 1)
        # A label's row adds to the level's, and at first adds nothing.
        self.table = nn.Parameter(torch.cat([table, torch.zeros(labels, 3 * features)]))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        gamma, a, beta = (rows @ self.table).view(len(rows), 3, -1, 1, 1).unbind(1)
        # By hand, as the fused kernels (batch_norm on B C channels) copy channels-last maps, and var_mean is slow.
        mu = x.mean((2, 3), keepdim=True)
        centred = x - mu
        scale = gamma * (centred.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()
        # A layer norm of the channels' means; its variance divides by the number of channels, not one less.
        unbiased = 1 - 1 / x.shape[1]
        relative = layer_norm(mu, mu.shape[1:], eps=1e-5 * unbiased)
        shift = torch.addcmul(beta, gamma * a, relative, value=math.sqrt(unbiased))
        output: Tensor = torch.addcmul(shift.to(x.dtype), centred, scale)
        return output


class Unnormalised(nn.Module):
    """The identity in the place of a normalisation."""

    def __init__(self, features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return x


class DilatedBlock(nn.Module):
    """x + conv(ELU(norm(conv(ELU(norm(x)))))), the pre-activation residual block.

    The one that opens a stage changes the features, with a convolution for the shortcut: undilated, it halves
    the size by mean pooling, with a 1x1 shortcut; dilated, it keeps the size, with a 3x3 one.
    """

    def __init__(
        self, norm: Norm, features: int, features_out: int, dilation: int = 1, opens: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = norm(features)
        self.conv1 = conv(features, features, dilation=dilation, bias=bias)
        self.norm2 = norm(features)
        self.conv2 = conv(features, features_out, dilation=dilation, bias=bias)
        halves = opens and dilation == 1
        self.pool = nn.AvgPool2d(2) if halves else nn.Identity()
        self.shortcut = conv(features, features_out, 1 if halves else 3, dilation) if opens else nn.Identity()

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        h = self.conv1(elu(self.norm1(x, rows)))
        h = self.conv2(elu(self.norm2(h, rows)))
        # A 1x1 convolution and a mean commute: pooled first, the shortcut costs a quarter.
        output: Tensor = self.shortcut(self.pool(x)) + self.pool(h)
        return output


class RefineBlock(nn.Module):
    """One cascade of RefineNet (Lin et al. 2017, Figure 3).

    Residual convolution units on each path; multi-resolution fusion, the paths brought to the first one's size and
    summed; chained residual pooling; and residual convolution units again.
    """

    def __init__(
        self, norm: Norm, pool: nn.Module, paths: int, features: int, features_out: int, units_out: int
    ) -> None:
        super().__init__()
        fused = paths if paths > 1 else 0
        self.units_in = nn.ModuleList(_units(norm, 2, features) for _ in range(paths))
        self.fuse_norms = nn.ModuleList(norm(features) for _ in range(fused))
        self.fuse_convs = nn.ModuleList(conv(features, features_out) for _ in range(fused))
        self.pool = pool
        self.pool_norms = nn.ModuleList(norm(features_out) for _ in range(2))
        self.pool_convs = nn.ModuleList(conv(features_out, features_out, bias=False) for _ in range(2))
        self.units_out = _units(norm, units_out, features_out)

    def forward(self, paths: Sequence[Tensor], rows: Tensor) -> Tensor:
        hs = [units(path, rows) for units, path in zip(self.units_in, paths, strict=True)]
        h = self._fuse(hs, rows) if len(hs) > 1 else hs[0]
        output: Tensor = self.units_out(self._pool(h, rows), rows)
        return output

    def _fuse(self, hs: Iterable[Tensor], rows: Tensor) -> Tensor:
        layers = zip(hs, self.fuse_norms, self.fuse_convs, strict=True)
        fused: list[Tensor] = [convolve(norm(h, rows)) for h, norm, convolve in layers]
        total, size = fused[0], fused[0].shape[2:]
        for h in fused[1:]:
            total = total + (h if h.shape[2:] == size else interpolate(h, size, mode="bilinear", align_corners=True))
        return total

    def _pool(self, h: Tensor, rows: Tensor) -> Tensor:
        total = path = elu(h)
        for norm, convolve in zip(self.pool_norms, self.pool_convs, strict=True):
            path = convolve(self.pool(norm(path, rows)))
            total = total + path
        return total


class Chain(nn.ModuleList):
    """Blocks one after the other, each with the same rows."""

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        for block in self:
            x = block(x, rows)
        return x


def conv(features: int, features_out: int, size: int = 3, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(features, features_out, size, padding=size // 2 * dilation, dilation=dilation, bias=bias)


def _units(norm: Norm, count: int, features: int) -> Chain:
    return Chain(DilatedBlock(norm, features, features, bias=False) for _ in range(count))
