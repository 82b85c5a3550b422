"""What the networks share: normalisation, the residual block, attention, dropout, initial weights."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.layers import fused
from scorefield.models.layers.norm import GroupNorm
from scorefield.models.layers.resampling import Fir

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
Norm = Callable[[int], GroupNorm]
# Both terms of a sum of independent ones, rescaled to the variance of one (Karras et al. 2018, StyleGAN; NCSN++).
RESCALED = math.sqrt(0.5)


def group_norm(channels: int, groups: int = 32, smallest: int = 4, eps: float = 1e-6) -> GroupNorm:
    """Group normalisation in 32 groups, fewer where a group would have under four channels or they would not fit."""
    most = max(1, min(groups, channels // smallest))
    return GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels, eps)


def zeroed(layer: Layer) -> Layer:
    """The layer with weights and bias zero: a residual branch that starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def channels_last(network: nn.Module) -> None:
    """Keep a network's kernels channel by channel: on CPUs and tensor cores convolutions are faster so."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_network(network: nn.Module, *, dynamic: bool | None = None) -> None:
    """Make a network slow to start and faster then.

    On CPUs its group normalisations go through compiled loops (`models.layers.fused`), which is what pays there:
    the rest is convolutions. On other devices, and without such normalisations, the whole goes through torch.compile.

    Args:
        network: changed in place.
        dynamic: of torch.compile.

    Raises:
        ValueError: on CPUs, without a C compiler.
    """
    layers = [module for module in network.modules() if isinstance(module, GroupNorm)]
    if not layers or next(network.parameters()).device.type != "cpu":
        network.compile(dynamic=dynamic)
        return
    for dtype in fused.TYPES:
        fused.library(dtype)  # now, rather than in the first step
    for layer in layers:
        layer.compiled = True


def as_images(x: Tensor, channels: int, stride: int) -> Tensor:
    """The images x (B, C, H, W), in channels-last order.

    Raises:
        ValueError: if these are no such images, or the height or width does not divide by the stride.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"expected images (B, {channels}, H, W), got {tuple(x.shape)}: vectors take an MLP")
    if x.shape[-2] % stride or x.shape[-1] % stride:
        raise ValueError(
            f"expected a height and width divisible by {stride}, got {tuple(x.shape[-2:])}: "
            "crop or pad the images, or use fewer multipliers (net.multipliers)"
        )
    return x.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the embedding added between them, as a residual (Ho et al. 2020, Appendix B).

        h = conv(resample(silu(norm(x)))) + W silu(e),    shortcut(resample(x)) + conv(dropout(silu(norm(h))))

    Args:
        channels_in: of x.
        channels_out: of what it gives.
        embedding: size of the embedding, None for a block that is told nothing.
        dropout: before the second convolution.
        norm: makes the normalisations.
        resample: up (True) or down (False) by 2, as in BigGAN (Song et al. 2021, Appendix H.1).
        fir: the filter of that.
        project: a 1x1 convolution on the shortcut wherever the block resamples, also between equal channels.
        scale_shift: the embedding scales and shifts the second norm (Dhariwal and Nichol 2021, Section 3: AdaGN).
        rescale: the sum by sqrt(1/2).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int | None,
        dropout: float = 0.0,
        *,
        norm: Norm = group_norm,
        resample: bool | None = None,
        fir: Sequence[float] = (1, 1),
        project: bool = True,
        scale_shift: bool = False,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout within [0, 1), got {dropout}")
        projected = channels_in != channels_out or (resample is not None and project)
        self.scale_shift, self.gain = scale_shift, RESCALED if rescale else None
        self.norm_in = norm(channels_in)
        self.resample = nn.Identity() if resample is None else Fir(fir, up=resample)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.project = None if embedding is None else nn.Linear(embedding, (1 + scale_shift) * channels_out)
        self.norm_out = norm(channels_out)
        self.dropout = dropout
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if projected else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv_in(self.resample(self.norm_in.activated(x)))
        told = None if self.project is None or embedding is None else self.project(silu(embedding))
        p = self.dropout if self.training else 0.0
        if told is not None and self.scale_shift:
            h = self.norm_out.activated(h, p, told=told.chunk(2, 1))
        else:
            h = self.norm_out.activated(h, p, added=told)
        output: Tensor = self.conv_out(h).add_(self.shortcut(self.resample(x)))
        return output if self.gain is None else output.mul_(self.gain)


class Attention(nn.Module):
    """Self-attention over the pixels, as a residual (Ho et al. 2020, Appendix B).

    Written out rather than fused, so that forward-mode derivatives pass through it.

    Args:
        channels: of the images.
        heads: that share them.
        norm: makes the normalisation.
        rescale: the sum by sqrt(1/2).
    """

    def __init__(self, channels: int, heads: int = 1, *, norm: Norm = group_norm, rescale: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"expected heads that divide {channels} channels, got {heads}")
        self.heads, self.gain = heads, RESCALED if rescale else None
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # (B, pixels, 3, heads, channels of a head): no copy where channels come last.
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        output: Tensor = self.project(mixed).add_(x)
        return output if self.gain is None else output.mul_(self.gain)


def norms(groups: int = 32, smallest: int = 4, eps: float = 1e-6) -> Norm:
    """Group normalisations with these settings."""
    return functools.partial(group_norm, groups=groups, smallest=smallest, eps=eps)
