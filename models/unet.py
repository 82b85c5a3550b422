"""The U-Net of DDPM (Ho et al. 2020, Appendix B), with VDM's Fourier features of its input as an option."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from models.layers import Attention, Downsample, NoiseEmbedding, ResidualBlock, Upsample, group_norm, zeroed


class UNet(nn.Module):
    """F(x, c_noise, label): residual blocks down, a middle with attention, and up again with skips.

    Any number of channels; height and width divisible by 2^(levels - 1), square or not.

    Args:
        channels: of the images, in and out.
        width: channels of the first level.
        multipliers: of the width, one for each level; the size halves between levels.
        blocks: residual blocks a level (one more on the way up).
        attention: the levels, counted from 0 at full size, that have attention.
        heads: of each attention.
        dropout: inside the residual blocks.
        fourier: powers n for which the network is also shown sin and cos of 2^n pi x, (6, 7) for 256 levels in [-1, 1]
            (Kingma et al. 2021, Appendix C). It sees the finest detail, and its flow turns sharply between levels.
        num_classes: with it, the network takes `label (B,)`; no label means "unknown".
    """

    def __init__(
        self,
        channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        heads: int = 1,
        dropout: float = 0.0,
        fourier: Sequence[int] = (),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.fourier = channels, tuple(fourier)
        widths = [width * m for m in multipliers]
        self.stride = 2 ** (len(widths) - 1)
        self.embed = NoiseEmbedding(width, 4 * width, num_classes)

        def block(channels_in: int, level: int) -> nn.ModuleList:
            residual = ResidualBlock(channels_in, widths[level], 4 * width, dropout)
            attend = Attention(widths[level], heads) if level in attention else nn.Identity()
            return nn.ModuleList([residual, attend])

        self.stem = nn.Conv2d(channels * (1 + 2 * len(self.fourier)), width, 3, padding=1)
        skips, current = [width], width
        self.down = nn.ModuleList()
        for level in range(len(widths)):
            for _ in range(blocks):
                self.down.append(block(current, level))
                skips.append(current := widths[level])
            if level < len(widths) - 1:
                self.down.append(Downsample(current))
                skips.append(current)

        self.middle_in = ResidualBlock(current, current, 4 * width, dropout)
        self.middle_attention = Attention(current, heads)
        self.middle_out = ResidualBlock(current, current, 4 * width, dropout)

        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), level))
                current = widths[level]
            if level > 0:
                self.up.append(Upsample(current))

        self.norm = group_norm(current)
        self.head = zeroed(nn.Conv2d(current, channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W).

        Raises:
            ValueError: if these are no such images, or the height or width does not divide by 2^(levels - 1).
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"expected images (B, {self.channels}, H, W), got {tuple(x.shape)}: vectors take an MLP")
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(
                f"expected a height and width divisible by {self.stride}, got {tuple(x.shape[-2:])}: "
                "crop or pad the images, or use fewer multipliers (net.multipliers)"
            )
        embedding = self.embed(c_noise, label)

        phases = [2**n * math.pi * x for n in self.fourier]
        h = self.stem(torch.cat([x, *(p.sin() for p in phases), *(p.cos() for p in phases)], 1))
        skips = [h]
        for layer in self.down:
            h = layer(h) if isinstance(layer, Downsample) else _apply(layer, h, embedding)
            skips.append(h)

        h = self.middle_out(self.middle_attention(self.middle_in(h, embedding)), embedding)

        for layer in self.up:
            h = layer(h) if isinstance(layer, Upsample) else _apply(layer, torch.cat([h, skips.pop()], 1), embedding)

        output: Tensor = self.head(silu(self.norm(h)))
        return output


def _apply(block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    residual, attend = block.children()
    output: Tensor = attend(residual(h, embedding))
    return output
