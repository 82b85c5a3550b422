"""What the networks share: embeddings, normalisation, the residual block, attention, resampling."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level, and a two-layer perceptron on them; labels, if any, are added.

    The frequencies are geometric from 1/4 to 32 radians a unit of c_noise (which spans about -2 to 2),
    so the network stays smooth in the noise level and ODE solvers can take long steps.

    Args:
        features: how many sines and cosines, even.
        width: size of the embedding, (B, width).
        num_classes: with it, `label (B,)` in 0 .. num_classes - 1 is embedded too; num_classes itself,
            and no label at all, mean "unknown".
    """

    frequencies: Tensor

    def __init__(self, features: int, width: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-2, 5, features // 2, base=2.0), persistent=False)
        self.perceptron = nn.Sequential(nn.Linear(2 * (features // 2), width), nn.SiLU(), nn.Linear(width, width))
        self.labels = None if num_classes is None else nn.Embedding(num_classes + 1, width)

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        phase = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        embedding: Tensor = self.perceptron(torch.cat([phase.sin(), phase.cos()], 1))
        return embedding if self.labels is None else embedding + self.labels(self._known(label, len(c_noise)))

    def _known(self, label: Tensor | None, batch: int) -> Tensor:
        assert self.labels is not None
        unknown = self.labels.num_embeddings - 1
        return torch.full((batch,), unknown, device=self.labels.weight.device) if label is None else label


def group_norm(channels: int) -> nn.GroupNorm:
    """DDPM's group normalisation: 32 groups, fewer where a group would have under four channels."""
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1)) if channels % 4 == 0 else 1, channels, eps=1e-6)


def zeroed(layer: Layer) -> Layer:
    """The layer with weights and bias zero: a residual branch that starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the embedding added between them (Ho et al. 2020, Appendix B)."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = group_norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.project = nn.Linear(embedding, channels_out)
        self.norm_out = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(silu(self.norm_in(x))) + self.project(silu(embedding))[:, :, None, None]
        h = self.conv_out(self.dropout(silu(self.norm_out(h))))
        shortcut: Tensor = self.shortcut(x)
        output: Tensor = shortcut + h
        return output


class Attention(nn.Module):
    """Self-attention over the pixels, as a residual (Ho et al. 2020, Appendix B).

    Written out rather than fused, so that forward-mode derivatives pass through it.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"expected heads that divide {channels} channels, got {heads}")
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width).unbind(1)
        weights = (q.transpose(-1, -2) @ k / math.sqrt(q.shape[-2])).softmax(-1)
        mixed = v @ weights.transpose(-1, -2)
        output: Tensor = x + self.project(mixed.reshape(batch, channels, height, width))
        return output


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded below and to the right as in DDPM."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled
