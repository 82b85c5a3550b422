"""The U-Net of ADM (Dhariwal and Nichol 2021, arXiv 2105.05233, Section 3)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.embeddings import NoiseEmbedding
from scorefield.models.layers.initial import as_images, channels_last, zeroed
from scorefield.models.layers.norm import norms


@save_hyperparameters
class ADM(nn.Module):
    """F(x, c_noise, label): a U-Net whose norms are scaled and shifted by the embedding, with attention at many sizes.

    Residual blocks resample themselves (BigGAN), and every block at a level with attention has it, down and up. Any
    number of channels; height and width divisible by 2^(levels - 1).

    Args:
        channels: of the images, in and out.
        width: channels of the first level, at a multiplier of 1.
        multipliers: of the width, one for each level; the size halves between levels.
        blocks: residual blocks a level (one more on the way up).
        attention: the levels, counted from 0 at full size, that have attention.
        head_width: channels of a head; None for a number of heads.
        heads: that number.
        dropout: inside the residual blocks.
        frequencies: of the noise embedding, by the unit of c_noise: "smooth", or "open_timesteps" as published.
        num_classes: with it, the network takes `label (B,)`; no label means "unknown".
        variances: the head also predicts variances (Nichol and Dhariwal 2021, Eq. 15), and they are left out of what
            is returned: a denoiser has no use for them.
        smallest_group: channels that a group of a normalisation has at least (1 in Dhariwal and Nichol's own code).
    """

    def __init__(
        self,
        channels: int,
        width: int = 192,
        multipliers: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (1, 2, 3),
        head_width: int | None = 64,
        heads: int = 4,
        dropout: float = 0.1,
        frequencies: str = "smooth",
        num_classes: int | None = None,
        variances: bool = False,
        smallest_group: int = 4,
    ) -> None:
        super().__init__()
        self.channels = channels
        widths = [round(width * m) for m in multipliers]
        self.stride = 2 ** (len(widths) - 1)
        self.embed = NoiseEmbedding(width, 4 * width, num_classes, frequencies)

        norm = norms(smallest=smallest_group, eps=1e-5)
        residual = partial(
            ResidualBlock, embedding=4 * width, dropout=dropout, norm=norm, project=False, scale_shift=True
        )

        def attend(channels: int) -> Attention:
            return Attention(channels, heads if head_width is None else max(channels // head_width, 1), norm=norm)

        def block(channels_in: int, level: int) -> UNetBlock:
            first = residual(channels_in, widths[level])
            return UNetBlock(first, attend(widths[level]) if level in attention else None)

        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        skips, current = [widths[0]], widths[0]
        self.down = nn.ModuleList()
        for level in range(len(widths)):
            for _ in range(blocks):
                self.down.append(block(current, level))
                skips.append(current := widths[level])
            if level < len(widths) - 1:
                self.down.append(residual(current, current, resample=False))
                skips.append(current)

        self.middle_in = residual(current, current)
        self.middle_attention = attend(current)
        self.middle_out = residual(current, current)

        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), level))
                current = widths[level]
            if level > 0:
                self.up.append(residual(current, current, resample=True))

        self.norm = norm(current)
        self.head = zeroed(nn.Conv2d(current, channels * (1 + variances), 3, padding=1))
        channels_last(self)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W).

        Raises:
            ValueError: if these are no such images, or the height or width does not divide by 2^(levels - 1).
        """
        x = as_images(x, self.channels, self.stride)
        emb = self.embed(c_noise, label)

        h = self.stem(x)
        skips = [h]
        for block in self.down:
            h = block(h, emb)
            skips.append(h)

        h = self.middle_out(self.middle_attention(self.middle_in(h, emb)), emb)

        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1) if isinstance(block, UNetBlock) else h, emb)

        output: Tensor = self.head(silu(self.norm(h)))
        return output[:, : self.channels]
