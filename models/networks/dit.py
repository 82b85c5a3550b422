"""The diffusion transformer (Peebles and Xie 2023, arXiv 2212.09748)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import TokenAttention
from scorefield.models.layers.embeddings import NoiseEmbedding, positions_of
from scorefield.models.layers.initial import other_than_images, zeroed

# Peebles and Xie 2023, Table 1: DiT(4, patch=2, num_classes=1000, **SIZES["XL"]) is their DiT-XL/2.
SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}


@save_hyperparameters
class DiT(nn.Module):
    """F(x, c_noise, label): patches of the image as tokens, through transformer blocks that the embedding modulates.

    Peebles and Xie 2023, Section 3.2, with adaLN-Zero: every block starts as the identity and the output as zero.
    The positions are fixed sines and cosines of a patch's column and row, so that one network takes images of any
    size; the defaults are DiT-S/2.

    Any number of channels; height and width divisible by the patch, square or not.

    Args:
        channels: of the images, in and out.
        patch: height and width of a patch.
        width: features of a token, divisible by 4 and by the heads.
        depth: how many blocks.
        heads: of each attention.
        mlp_ratio: features inside a block's perceptron, by the width.
        num_classes: with it, the network takes `label (B,)` in 0 .. num_classes - 1; num_classes itself, and
            no label at all, mean "unknown".
        frequencies: of the noise embedding, by the unit of c_noise (models.embeddings): "smooth", or
            "open_timesteps" as in the paper.
        variances: the head also predicts a variance a value (Nichol and Dhariwal 2021, Section 3.1), as the published
            weights do; a denoiser has no use for it, and it is dropped.

    Raises:
        ValueError: if the width does not divide so, or a size is below one.
    """

    def __init__(
        self,
        channels: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        frequencies: str = "smooth",
        variances: bool = False,
    ) -> None:
        super().__init__()
        if min(patch, heads, width) < 1 or width % heads or width % 4:
            raise ValueError(
                f"expected a width divisible by 4 and by the heads, and a patch of at least 1, "
                f"got width={width}, heads={heads}, patch={patch}"
            )
        self.channels, self.patch = channels, patch
        self.patchify = nn.Conv2d(channels, width, patch, stride=patch)
        self.unknown_label = num_classes
        self.embed = NoiseEmbedding(256, width, num_classes, frequencies)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, round(mlp_ratio * width)) for _ in range(depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, (1 + variances) * channels * patch**2)
        self._initialise()

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W).

        Raises:
            ValueError: if these are no such images, or the height or width does not divide by the patch.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W), got {tuple(x.shape)}: {other_than_images(x)}"
            )
        if any(size % self.patch or size == 0 for size in x.shape[2:]):
            raise ValueError(
                f"expected a height and width divisible by {self.patch}, got {tuple(x.shape[2:])}: "
                "crop or pad the images, or use smaller patches (net.patch)"
            )
        emb = silu(self.embed(c_noise, label))
        h = self.patchify(x)
        rows, columns = h.shape[2:]
        # In x's dtype, so that under autocast what the residuals add to has all its digits.
        h = h.flatten(2).transpose(1, 2) + positions_of(rows, columns, h.shape[1], like=x)
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.modulate(emb)[:, None].chunk(2, -1)
        return self._unpatchify(self.head(modulated(h, shift, scale)), rows, columns)

    def _unpatchify(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        batch, patch = len(tokens), self.patch
        pixels = tokens.reshape(batch, rows, columns, patch, patch, -1)[..., : self.channels]
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.channels, rows * patch, columns * patch)

    def _initialise(self) -> None:
        """As in the paper's code: Xavier's uniform weights, small embeddings, and zero where adaLN-Zero has it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _xavier(module)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        _xavier(self.patchify)
        for module in self.embed.perceptron:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            zeroed(block.modulate)
        zeroed(self.modulate)
        zeroed(self.head)


class DiTBlock(nn.Module):
    """Attention and a perceptron as residuals, each shifted, scaled and gated by the embedding (adaLN-Zero).

        h + gate f(LN(h) (1 + scale) + shift),    (shift, scale, gate) = W silu(emb)

    It takes tokens (B, N, width) and silu(emb) (B, width).
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(width, 6 * width)
        self.attention = TokenAttention(width, heads)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(emb)[:, None].chunk(6, -1)
        h = h + gate * self.attention(modulated(h, shift, scale))
        inner = gelu(self.expand(modulated(h, shift_mlp, scale_mlp)), approximate="tanh")
        output: Tensor = h + gate_mlp * self.contract(inner)
        return output


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(h) (1 + scale) + shift, of tokens (B, N, width)."""
    return torch.addcmul(shift, layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)


def _xavier(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
