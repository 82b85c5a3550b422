"""Attention, written out rather than fused, so that forward-mode derivatives pass through it."""

import math

from torch import Tensor, nn

from scorefield.models.layers.initial import RESCALED, zeroed
from scorefield.models.layers.norm import Norm, make_norm


class Attention(nn.Module):
    """Self-attention over the pixels of images (B, C, H, W), as a residual (Ho et al. 2020, Appendix B).

    Args:
        channels: of the images.
        heads: number of heads, which share the channels.
        norm: makes the normalisation.
        rescale: multiply the sum by sqrt(1/2).

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int = 1, *, norm: Norm = make_norm, rescale: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"expected heads that divide {channels} channels, got {heads}: change net.heads")
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


class TokenAttention(nn.Module):
    """Self-attention over tokens (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).reshape(*tokens.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)).softmax(-1)
        output: Tensor = self.project((weights @ v).transpose(1, 2).flatten(2))
        return output


class CrossAttention(nn.Module):
    """Attention of tokens (B, N, width) to a context of other tokens (B, M, d), or to themselves.

        softmax(q k^T / sqrt(width / heads)) v,    with q of the tokens, and k and v of the context

    q, k and v have no bias (Rombach et al. 2022, Section 3.3). A masked token has exactly no influence, whatever it
    holds, and its gradient is exactly 0. Where all tokens of a sample are masked, the answer is exactly 0.

    Args:
        width: of the tokens, in and out.
        heads: number of heads, which share the width.
        context: width d of the context's tokens; None for attention of the tokens to themselves.
        head_width: channels of a head, if the heads do not share the width.

    Raises:
        ValueError: if the heads do not divide the width that they share.
    """

    def __init__(self, width: int, heads: int, context: int | None = None, head_width: int | None = None) -> None:
        super().__init__()
        if heads < 1 or (head_width is None and width % heads):
            raise ValueError(f"expected heads that divide {width} channels, got {heads}: change net.heads")
        self.heads = heads
        inner = width if head_width is None else heads * head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(context or width, inner, bias=False)
        self.value = nn.Linear(context or width, inner, bias=False)
        self.project = nn.Linear(inner, width)

    def forward(self, tokens: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mixed values, (B, N, width); `mask (B, M)` is true where a token of the context counts."""
        context = tokens if context is None else context
        if mask is not None:
            context = context.masked_fill(~mask[:, :, None], 0)  # a product with 0 would keep a NaN
        q, k, v = (self._by_head(x) for x in (self.query(tokens), self.key(context), self.value(context)))
        scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)
        if mask is None:
            return self._mixed(scores, v)
        some = mask.any(1, keepdim=True)
        # The softmax of nothing is NaN, and so is its gradient: such a sample sees all, and its answer is dropped.
        scores = scores.masked_fill(~(mask | ~some)[:, None, None], -math.inf)
        return self._mixed(scores, v).masked_fill(~some[:, :, None], 0)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, width) as (B, heads, N, width / heads)."""
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def _mixed(self, scores: Tensor, values: Tensor) -> Tensor:
        output: Tensor = self.project((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
        return output
