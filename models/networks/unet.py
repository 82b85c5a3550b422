"""The U-Net of DDPM (Ho et al. 2020, Appendix B), with VDM's Fourier features of its input as an option."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.embeddings import NoiseEmbedding, fourier_features
from scorefield.models.layers.initial import as_images, channels_last, with_concat, zeroed
from scorefield.models.layers.norm import norms
from scorefield.models.layers.resampling import Downsample, Fir, Upsample


@save_hyperparameters
class UNet(nn.Module):
    """F(x, c_noise, label): residual blocks down, a middle with attention, and up again with skips.

    Any number of channels; height and width divisible by 2^(levels - 1), square or not.

    Args:
        channels: of the images, in and out.
        width: channels of the first level.
        multipliers: of the width, one for each level; the size halves between levels.
        blocks: residual blocks a level (one more on the way up).
        attention: the levels, counted from 0 at full size, that have attention.
        attention_up: after "each" block of such a level on the way up (Ho et al.), or the "last" (Song et al. 2021).
        middle_attention: whether the middle has it too.
        middle_norm: whether that attention is normalised, as all others are.
        heads: of each attention.
        head_width: channels of a head, in the place of their number.
        dropout: inside the residual blocks.
        fourier: powers n for which sin and cos of 2^n pi x are inputs too; (7, 8) for 256 levels in [-1, 1]
            repeat every two levels and every one (Kingma et al. 2021, Appendix C). It sees the finest detail, and its
            flow turns sharply between levels.
        num_classes: with it, the network takes `label (B,)`; without a label the class is "unknown".
        frequencies: of the noise embedding, by the unit of c_noise: "smooth", or "timesteps" as in the paper.
        smallest_group: channels that a group of a normalisation has at least; the paper's has 32 groups always.
        eps: of the normalisations.
        scale_shift: the embedding scales and shifts them (Dhariwal and Nichol 2021).
        resample_conv: resample with convolutions; otherwise by the mean of 2x2 pixels and the nearest neighbour.
        symmetric_padding: pad on all sides before the size is halved; the paper pads below and to the right.
        unit_range: x is 2x - 1 first, for images in 0 .. 1.
        variances: the head also predicts variances, which are not returned (see `ADM`).
        inputs: images of `channels` that x is made of, side by side; the parameterisation decides it.
        code_size: with it, the network takes `code (B, code_size)` of a path with a latent code.
        concat: channels of the further images that it takes as `concat (B, concat, H, W)`, beside x.
    """

    def __init__(
        self,
        channels: int,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        attention_up: str = "each",
        middle_attention: bool = True,
        middle_norm: bool = True,
        heads: int = 1,
        head_width: int | None = None,
        dropout: float = 0.0,
        fourier: Sequence[int] = (),
        num_classes: int | None = None,
        frequencies: str = "smooth",
        smallest_group: int = 4,
        eps: float = 1e-6,
        scale_shift: bool = False,
        resample_conv: bool = True,
        symmetric_padding: bool = False,
        unit_range: bool = False,
        variances: bool = False,
        inputs: int = 1,
        code_size: int | None = None,
        concat: int = 0,
    ) -> None:
        super().__init__()
        if attention_up not in ("each", "last"):
            raise ValueError(f"expected attention_up to be each or last, got {attention_up!r}")
        self.channels, self.inputs, self.fourier, self.unit_range = channels, inputs, tuple(fourier), unit_range
        self.concat = concat
        widths = [round(width * m) for m in multipliers]
        self.stride = 2 ** (len(widths) - 1)
        self.unknown_label = num_classes
        self.embed = NoiseEmbedding(width, 4 * width, num_classes, frequencies, code_size=code_size)
        norm = norms(smallest=smallest_group, eps=eps)

        def attend(channels: int) -> Attention:
            return Attention(channels, heads if head_width is None else channels // head_width, norm=norm)

        def residual(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, 4 * width, dropout, norm=norm, scale_shift=scale_shift)

        def block(channels_in: int, level: int, attends: bool) -> UNetBlock:
            attending = attend(widths[level]) if attends and level in attention else None
            return UNetBlock(residual(channels_in, widths[level]), attending)

        def downsample(channels: int) -> nn.Module:
            return Downsample(channels, symmetric=symmetric_padding) if resample_conv else Fir()

        self.stem = nn.Conv2d(channels * (inputs + 2 * len(self.fourier)) + concat, widths[0], 3, padding=1)
        skips, current = [widths[0]], widths[0]
        self.down = nn.ModuleList()
        for level in range(len(widths)):
            for _ in range(blocks):
                self.down.append(block(current, level, attends=True))
                skips.append(current := widths[level])
            if level < len(widths) - 1:
                self.down.append(downsample(current))
                skips.append(current)

        self.middle_in = residual(current, current)
        self.middle_attention = attend(current) if middle_attention else nn.Identity()
        if middle_attention and not middle_norm:
            self.middle_attention.add_module("norm", nn.Identity())
        self.middle_out = residual(current, current)

        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(blocks + 1):
                self.up.append(block(current + skips.pop(), level, attends=attention_up == "each" or i == blocks))
                current = widths[level]
            if level > 0:
                self.up.append(Upsample(current) if resample_conv else Fir(up=True))

        self.norm = norm(current)
        self.head = zeroed(nn.Conv2d(current, channels * (1 + variances), 3, padding=1))
        channels_last(self)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        code: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """The prediction, shape (B, C, H, W); without further images `concat (B, concat, H, W)` these are zeros.

        Raises:
            ValueError: if these are no such images, or the height or width does not divide by 2^(levels - 1).
        """
        x = as_images(x, self.channels * self.inputs, self.stride)
        emb = self.embed(c_noise, label, code)

        x = 2 * x - 1 if self.unit_range else x
        x = torch.cat([x, *fourier_features(x[:, : self.channels], self.fourier)], 1)
        h = self.stem(with_concat(x, concat, self.concat))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, UNetBlock) else layer(h)
            skips.append(h)

        h = self.middle_out(self.middle_attention(self.middle_in(h, emb)), emb)

        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1), emb) if isinstance(layer, UNetBlock) else layer(h)

        output: Tensor = self.head(silu(self.norm(h)))
        return output[:, : self.channels]
