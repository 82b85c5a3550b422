"""The spatial transformer of latent diffusion (Rombach et al. 2022, Section 3.3 and Appendix E.2.1)."""

from torch import Tensor, nn
from torch.nn.functional import gelu

from scorefield.models.layers.attention import CrossAttention
from scorefield.models.layers.embeddings import positions_of
from scorefield.models.layers.initial import zeroed
from scorefield.models.layers.norm import norms


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of images (B, C, H, W), as a residual that starts as nothing.

        x + W_out blocks(W_in GN(x)),    with 1x1 convolutions W_in, and W_out of zeros

    Every pixel is a token. Pixels attend to each other and to the context. The published one gives them no positions.

    Args:
        channels: of the images.
        heads: of each attention, which share the channels.
        context: width d of the context's tokens.
        depth: how many blocks.
        positions: add sines and cosines of a pixel's column and row to its token, so that a place can ask the context
            for what is said of it. The channels must divide by 4.

    Raises:
        ValueError: if the heads, or 4 with positions, do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, context: int, depth: int = 1, positions: bool = False) -> None:
        super().__init__()
        if positions and channels % 4:
            raise ValueError(f"expected channels that divide by 4 with net.positions, got {channels}: change net.width")
        self.positions = positions
        self.norm = norms(smallest=1, eps=1e-6)(channels)
        self.expand = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context) for _ in range(depth))
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The images, (B, C, H, W); see `TransformerBlock` for the context `(B, M, d)` and its mask `(B, M)`."""
        height, width = x.shape[2:]
        tokens = self.expand(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        if self.positions:
            tokens = tokens + positions_of(height, width, x.shape[1], like=x)
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        output: Tensor = self.project(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)).add_(x)
        return output


class TransformerBlock(nn.Module):
    """Attention to oneself, attention to a context, and a gated perceptron, as residuals of tokens (B, N, width).

        h + f(LN(h)),    the perceptron with a GEGLU of 4 widths (Shazeer 2020):  W (a gelu(b)),  (a, b) = V LN(h)

    Without a context, or with all of it masked, the second adds exactly nothing.

    Args:
        width: of the tokens.
        heads: of each attention.
        context: width of the context's tokens.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm_self, self.norm_context, self.norm_perceptron = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = CrossAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads, context)
        self.expand = nn.Linear(width, 8 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = h + self.self_attention(self.norm_self(h))
        if context is not None and context.shape[1] > 0:
            h = h + self.cross_attention(self.norm_context(h), context, mask)
        value, gate = self.expand(self.norm_perceptron(h)).chunk(2, -1)
        output: Tensor = h + self.contract(value * gelu(gate))
        return output
