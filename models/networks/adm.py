"""The U-Net of ADM (Dhariwal and Nichol 2021, arXiv 2105.05233, Section 3), and of latent diffusion."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock, attended
from scorefield.models.layers.embeddings import NoiseEmbedding
from scorefield.models.layers.initial import as_context, as_images, channels_last, with_concat, zeroed
from scorefield.models.layers.norm import norms
from scorefield.models.layers.resampling import Downsample, Upsample
from scorefield.models.layers.transformer import SpatialTransformer


@save_hyperparameters
class ADM(nn.Module):
    """F(x, c_noise, label): a U-Net whose norms are scaled and shifted by the embedding, with attention at many sizes.

    Residual blocks resample themselves (BigGAN), and every block at a level with attention has it, down and up. Any
    number of channels; height and width divisible by 2^(levels - 1).

    With `context` it takes tokens too, and is the U-Net of latent diffusion (Rombach et al. 2022, Section 3.3): spatial
    transformers are in the place of attention. Theirs has `scale_shift=False` and `resample_blocks=False`.

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
        scale_shift: the embedding scales and shifts the norms; otherwise it is added before them.
        resample_blocks: residual blocks resample; otherwise convolutions of stride 2, and of nearest neighbours.
        context: width d of the tokens that it takes as `context (B, M, d)`, None for none.
        transformer_depth: blocks of each spatial transformer, where there is a context.
        concat: channels of the further images that it takes as `concat (B, concat, H, W)`, beside x.
        positions: pixels in the spatial transformers know their column and row; the published ones do not.
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
        scale_shift: bool = True,
        resample_blocks: bool = True,
        context: int | None = None,
        transformer_depth: int = 1,
        concat: int = 0,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.context, self.concat = channels, context, concat
        widths = [round(width * m) for m in multipliers]
        self.stride = 2 ** (len(widths) - 1)
        self.unknown_label = num_classes
        self.embed = NoiseEmbedding(width, 4 * width, num_classes, frequencies)

        norm = norms(smallest=smallest_group, eps=1e-5)
        residual = partial(
            ResidualBlock, embedding=4 * width, dropout=dropout, norm=norm, project=False, scale_shift=scale_shift
        )

        def attend(channels: int) -> Attention | SpatialTransformer:
            count = heads if head_width is None else max(channels // head_width, 1)
            if context is None:
                return Attention(channels, count, norm=norm)
            return SpatialTransformer(channels, count, context, transformer_depth, positions)

        def resampling(channels: int, up: bool) -> nn.Module:
            if resample_blocks:
                return residual(channels, channels, resample=up)
            return Upsample(channels) if up else Downsample(channels, symmetric=True)

        def block(channels_in: int, level: int) -> UNetBlock:
            first = residual(channels_in, widths[level])
            return UNetBlock(first, attend(widths[level]) if level in attention else None)

        self.stem = nn.Conv2d(channels + concat, widths[0], 3, padding=1)
        skips, current = [widths[0]], widths[0]
        self.down = nn.ModuleList()
        for level in range(len(widths)):
            for _ in range(blocks):
                self.down.append(block(current, level))
                skips.append(current := widths[level])
            if level < len(widths) - 1:
                self.down.append(resampling(current, up=False))
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
                self.up.append(resampling(current, up=True))

        self.norm = norm(current)
        self.head = zeroed(nn.Conv2d(current, channels * (1 + variances), 3, padding=1))
        channels_last(self)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """The prediction, shape (B, C, H, W).

        Without a context, and for samples of which every token is masked, the context adds exactly nothing.

        Args:
            x: the images, (B, C, H, W).
            c_noise: of the noise level, (B,).
            label: the classes, (B,).
            context: tokens, (B, M, d).
            context_mask: (B, M), true where a token counts; by default all do.
            concat: further images, (B, concat, H, W); by default zeros.

        Raises:
            ValueError: if these are no such images, the height or width does not divide by 2^(levels - 1), or the
                context, its mask or the further images have another shape.
        """
        x = with_concat(as_images(x, self.channels, self.stride), concat, self.concat)
        context, context_mask = as_context(x, context, context_mask, self.context)
        emb = self.embed(c_noise, label)

        def through(layer: nn.Module, h: Tensor) -> Tensor:
            if isinstance(layer, UNetBlock):
                return layer(h, emb, context, context_mask)  # type: ignore[no-any-return]
            return layer(h, emb) if isinstance(layer, ResidualBlock) else layer(h)  # type: ignore[no-any-return]

        h = self.stem(x)
        skips = [h]
        for layer in self.down:
            h = through(layer, h)
            skips.append(h)

        h = attended(self.middle_attention, self.middle_in(h, emb), context, context_mask)
        h = self.middle_out(h, emb)

        for layer in self.up:
            h = through(layer, torch.cat([h, skips.pop()], 1) if isinstance(layer, UNetBlock) else h)

        output: Tensor = self.head(silu(self.norm(h)))
        return output[:, : self.channels]
