"""The residual block that the U-Nets share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from scorefield.models.layers.attention import Attention
from scorefield.models.layers.initial import RESCALED, zeroed
from scorefield.models.layers.norm import Norm, make_norm
from scorefield.models.layers.resampling import Fir
from scorefield.models.layers.transformer import SpatialTransformer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the embedding added between them, as a residual (Ho et al. 2020, Appendix B).

        h = conv(resample(silu(norm(x)))) + W silu(emb),    shortcut(resample(x)) + conv(dropout(silu(norm(h))))

    Args:
        channels_in: of the input.
        channels_out: of the output.
        embedding: size of the embedding (B, embedding), None for a block without one.
        dropout: probability, before the second convolution.
        norm: makes the normalisations.
        resample: up (True) or down (False) by 2, as in BigGAN (Song et al. 2021, Appendix H.1).
        fir: the filter of that.
        project: a 1x1 convolution on the shortcut wherever the block resamples, also between equal channels.
        scale_shift: the embedding scales and shifts the second norm (Dhariwal and Nichol 2021, Section 3: AdaGN).
        rescale: multiply the sum by sqrt(1/2).

    Raises:
        ValueError: for a probability outside [0, 1).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int | None,
        dropout: float = 0.0,
        *,
        norm: Norm = make_norm,
        resample: bool | None = None,
        fir: Sequence[float] = (1, 1),
        project: bool = True,
        scale_shift: bool = False,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout within [0, 1), got {dropout}: change net.dropout")
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

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv_in(self.resample(silu(self.norm_in(x))))
        if self.project is None or emb is None:
            h = self.norm_out(h)
        elif self.scale_shift:
            scale, shift = self.project(silu(emb))[:, :, None, None].chunk(2, 1)
            h = self.norm_out(h)
            h = torch.addcmul(shift.to(h.dtype), h, 1 + scale.to(h.dtype))
        else:
            h = self.norm_out(h + self.project(silu(emb))[:, :, None, None])
        h = self.conv_out(dropout(silu(h), self.dropout, self.training))
        output: Tensor = h.add_(self.shortcut(self.resample(x)))
        return output if self.gain is None else output.mul_(self.gain)


class UNetBlock(nn.Module):
    """A residual block, and attention, a spatial transformer, or none."""

    def __init__(self, residual: ResidualBlock, attention: Attention | SpatialTransformer | None = None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(
        self, h: Tensor, emb: Tensor | None = None, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The images, (B, C, H, W); a spatial transformer sees the context `(B, M, d)` and its mask `(B, M)`."""
        return attended(self.attention, self.residual(h, emb), context, mask)


def attended(
    attention: nn.Module | None, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """The images h (B, C, H, W) after attention, which sees the context if it is a spatial transformer."""
    if attention is None:
        return h
    output: Tensor = attention(h, context, mask) if isinstance(attention, SpatialTransformer) else attention(h)
    return output
