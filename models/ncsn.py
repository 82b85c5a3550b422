"""The noise-conditional score network of Song and Ermon 2019 (arXiv 1907.05600, Appendix A)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, elu, interpolate, layer_norm, one_hot, pad

Norm = Callable[[int], nn.Module]
SIGMAS = tuple(0.01 ** (i / 9) for i in range(10))


class NCSN(nn.Module):
    """F(x, c_noise, label): a 4-cascaded RefineNet with dilated residual blocks, ELU and InstanceNorm++.

    Song and Ermon 2019, Appendix A, as in their published code: four stages of residual blocks, the first at
    full size, the others at half, the last two dilated by 2 and 4 in place of smaller maps; then four refining
    blocks, each merging a stage with what the deeper ones gave. It predicts the score (`precondition.score`).

    At a listed noise level this is the published network, which looks up rows of its normalisations by the
    level's index; between levels the rows are interpolated linearly in log sigma, and outside they are the
    nearest level's, so that any solver can use it.

    Any number of channels; height and width even and at least 4, square or not.

    Args:
        channels: of the images, in and out.
        sigmas: the levels sigma / alpha it is trained on, decreasing.
        width: channels of the first stage; the others have twice as many.
        num_classes: with it, the network takes `label (B,)` in 0 .. num_classes - 1; num_classes itself, and
            no label at all, mean "unknown".
        unit_range: whether x is 2x - 1 first, as published for images in 0 .. 1 (not for their logits).

    Raises:
        ValueError: if the levels are not positive and decreasing.
    """

    def __init__(
        self,
        channels: int,
        sigmas: Sequence[float] = SIGMAS,
        width: int = 128,
        num_classes: int | None = None,
        unit_range: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.unit_range = unit_range
        self.condition = Condition(sigmas, num_classes)
        norm, wide = partial(InstanceNormPlus, len(sigmas), self.condition.labels), 2 * width

        def stage(features: int, features_out: int, dilation: int = 1, opens: bool = True) -> Chain:
            first = ResidualBlock(norm, features, features_out, dilation, opens)
            return Chain([first, ResidualBlock(norm, features_out, features_out, dilation)])

        self.stem = _conv(channels, width)
        self.stages = nn.ModuleList(
            [stage(width, width, opens=False), stage(width, wide), stage(wide, wide, 2), stage(wide, wide, 4)]
        )
        self.refine = nn.ModuleList(
            [
                RefineBlock(norm, 1, wide, wide),
                RefineBlock(norm, 2, wide, wide),
                RefineBlock(norm, 2, wide, width),
                RefineBlock(norm, 2, width, width, units_out=3),
            ]
        )
        self.norm = norm(width)
        self.head = _conv(width, channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W), for c_noise = log(sigma / alpha) / 4 of shape (B,).

        Raises:
            ValueError: if the channels or the size do not fit, or a label is given to a network without classes.
        """
        if x.shape[1:2] != (self.channels,) or x.ndim != 4:
            raise ValueError(f"expected images (B, {self.channels}, H, W), got {tuple(x.shape)}")
        if any(size % 2 or size < 4 for size in x.shape[2:]):
            raise ValueError(f"expected an even height and width of at least 4, got {tuple(x.shape[2:])}")
        rows = self.condition(c_noise, label).to(x.dtype)

        h = self.stem(2 * x - 1 if self.unit_range else x)
        skips = []
        for stage in self.stages:
            h = stage(h, rows)
            skips.append(h)

        deepest, *shallower = self.refine
        h = deepest([skips.pop()], rows)
        for refine in shallower:
            h = refine([skips.pop(), h], rows)

        output: Tensor = self.head(elu(self.norm(h, rows)))
        return output


class Condition(nn.Module):
    """Which rows of the normalisations' tables a sample takes, and how much of each: (B, levels + labels).

    The first columns place c_noise among the levels, (0, .., 1 - f, f, .., 0) at the fraction f of the way to the next
    in log sigma; the last are one at the sample's label.
    """

    bounds: Tensor

    def __init__(self, sigmas: Sequence[float], num_classes: int | None) -> None:
        super().__init__()
        levels = [float(sigma) for sigma in sigmas]
        if not levels or levels[-1] <= 0 or any(after >= before for before, after in pairwise(levels)):
            raise ValueError(f"expected positive, decreasing noise levels, got {levels}")
        self.num_classes = num_classes
        self.labels = 0 if num_classes is None else num_classes + 1
        log = torch.tensor(levels, dtype=torch.float64).log() / 4
        # A level that went through float32 is still that level: each ends a little inside its neighbours' interval.
        slack = (-log.diff() / 4).clamp(max=1e-6)
        bounds = torch.stack([log[:-1] - slack, -log.diff() - 2 * slack])
        self.register_buffer("bounds", bounds.to(torch.get_default_dtype()), persistent=False)

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if label is not None and self.num_classes is None:
            raise ValueError("expected no label: the network was made without num_classes; got one")
        start, gap = self.bounds.to(c_noise.dtype)
        passed = ((start - c_noise[:, None]) / gap).clamp(0, 1)
        rows = pad(passed, (1, 0), value=1.0) - pad(passed, (0, 1))
        if self.num_classes is None:
            return rows
        known = torch.full_like(c_noise, self.num_classes, dtype=torch.long) if label is None else label.long()
        return torch.cat([rows, one_hot(known, self.labels).to(rows.dtype)], 1)


class InstanceNormPlus(nn.Module):
    """Conditional instance normalisation++, which keeps the means it takes away, relative to each other.

        gamma ((x - mu) / s + a (mu - m) / v) + beta

    mu and s^2 are a channel's mean and variance over the pixels, m and v^2 the mean and (unbiased) variance of mu
    over the channels, and gamma, a, beta each channel's, mixed from the table by `rows (B, levels + labels)`
    (Song and Ermon 2019, Appendix A.1; as in their code, gamma multiplies both terms and each variance is + 1e-5).
    """

    def __init__(self, levels: int, labels: int, features: int) -> None:
        super().__init__()
        scales, zeros = torch.empty(levels, 2 * features).normal_(1.0, 0.02), torch.zeros(levels, features)
        table = torch.cat([scales, zeros], 1)
        # A label's row adds to the level's, and at first adds nothing.
        self.table = nn.Parameter(torch.cat([table, torch.zeros(labels, 3 * features)]))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        gamma, a, beta = (rows @ self.table).chunk(3, 1)
        # A layer norm of the channels' means; its variance divides by the number of channels, not one less.
        features, unbiased = x.shape[1], 1 - 1 / x.shape[1]
        means = layer_norm(x.mean((2, 3)), (features,), eps=1e-5 * unbiased)
        shift = torch.addcmul(beta, gamma * a, means, value=math.sqrt(unbiased))
        # With batch and channels as one axis the fused kernel is an instance norm that scales and shifts each sample;
        # it wants both in one dtype, which autocast may have parted.
        flat, gamma = x.reshape(1, -1, *x.shape[2:]), gamma.to(shift.dtype)
        normalised = batch_norm(flat, None, None, gamma.flatten(), shift.flatten(), training=True, eps=1e-5)
        return normalised.view(x.shape)


class ResidualBlock(nn.Module):
    """x + conv(ELU(norm(conv(ELU(norm(x)))))), the pre-activation residual block.

    The one that opens a stage changes the features, with a convolution for the shortcut: undilated, it halves
    the size by mean pooling, with a 1x1 shortcut; dilated, it keeps the size, with a 3x3 one.
    """

    def __init__(
        self, norm: Norm, features: int, features_out: int, dilation: int = 1, opens: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = norm(features)
        self.conv1 = _conv(features, features, dilation=dilation, bias=bias)
        self.norm2 = norm(features)
        self.conv2 = _conv(features, features_out, dilation=dilation, bias=bias)
        halves = opens and dilation == 1
        self.pool = nn.AvgPool2d(2) if halves else nn.Identity()
        self.shortcut = _conv(features, features_out, 1 if halves else 3, dilation) if opens else nn.Identity()

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        h = self.conv1(elu(self.norm1(x, rows)))
        h = self.conv2(elu(self.norm2(h, rows)))
        # A 1x1 convolution and a mean commute: pooled first, the shortcut costs a quarter.
        output: Tensor = self.shortcut(self.pool(x)) + self.pool(h)
        return output


class RefineBlock(nn.Module):
    """One cascade of RefineNet (Lin et al. 2017, Figure 3), with InstanceNorm++ before every convolution.

    Residual convolution units on each path; multi-resolution fusion, the paths brought to the first one's size and
    summed; chained residual pooling, with means for the maxima; and residual convolution units again.
    """

    def __init__(self, norm: Norm, paths: int, features: int, features_out: int, units_out: int = 1) -> None:
        super().__init__()
        fused = paths if paths > 1 else 0
        self.units_in = nn.ModuleList(_units(norm, 2, features) for _ in range(paths))
        self.fuse_norms = nn.ModuleList(norm(features) for _ in range(fused))
        self.fuse_convs = nn.ModuleList(_conv(features, features_out) for _ in range(fused))
        self.pool_norms = nn.ModuleList(norm(features_out) for _ in range(2))
        self.pool_convs = nn.ModuleList(_conv(features_out, features_out, bias=False) for _ in range(2))
        self.units_out = _units(norm, units_out, features_out)

    def forward(self, paths: Sequence[Tensor], rows: Tensor) -> Tensor:
        hs = [units(path, rows) for units, path in zip(self.units_in, paths, strict=True)]
        h = self._fuse(hs, rows) if len(hs) > 1 else hs[0]
        output: Tensor = self.units_out(self._pool(h, rows), rows)
        return output

    def _fuse(self, hs: Sequence[Tensor], rows: Tensor) -> Tensor:
        hs = [conv(norm(h, rows)) for h, norm, conv in zip(hs, self.fuse_norms, self.fuse_convs, strict=True)]
        total = hs[0]
        for h in hs[1:]:
            size = total.shape[2:]
            total = total + (h if h.shape[2:] == size else interpolate(h, size, mode="bilinear", align_corners=True))
        return total

    def _pool(self, h: Tensor, rows: Tensor) -> Tensor:
        total = path = elu(h)
        for norm, conv in zip(self.pool_norms, self.pool_convs, strict=True):
            path = conv(avg_pool2d(norm(path, rows), 5, stride=1, padding=2))
            total = total + path
        return total


class Chain(nn.ModuleList):
    """Blocks one after the other, each told the rows."""

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        for block in self:
            x = block(x, rows)
        return x


def _conv(features: int, features_out: int, size: int = 3, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(features, features_out, size, padding=size // 2 * dilation, dilation=dilation, bias=bias)


def _units(norm: Norm, count: int, features: int) -> Chain:
    return Chain(ResidualBlock(norm, features, features, bias=False) for _ in range(count))
