"""The encoder of latent codes for paths that depend on them (Sahoo et al. 2024, "MuLAN", Section 3.2)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, silu

from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.initial import zeroed
from scorefield.models.layers.norm import make_norm

CELLS = 4  # the means over 4 x 4 parts of an image say where it has what


class CodeEncoder(nn.Module):
    """Logits of the code's bits, x0 (B, *D) -> (B, size); they start at zero, where all codes are equally likely.

    For images: residual blocks at full size and means over 4 x 4 parts, of any height and width. Other samples are
    vectors of a perceptron.

    Args:
        shape: of a sample, (*D).
        size: bits of the code.
        width: channels of the blocks, or of the hidden layers.
        blocks: residual blocks, or hidden layers.
    """

    def __init__(self, shape: Sequence[int], size: int = 50, width: int = 128, blocks: int = 4) -> None:
        super().__init__()
        if len(shape) == 3:
            self.stem: nn.Module = nn.Conv2d(shape[0], width, 3, padding=1)
            self.blocks = nn.ModuleList(ResidualBlock(width, width, None) for _ in range(blocks))
            self.norm: nn.Module = make_norm(width)
            self.head = zeroed(nn.Linear(width * CELLS**2, size))
        else:
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width))
            self.blocks = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks))
            self.norm = nn.LayerNorm(width)
            self.head = zeroed(nn.Linear(width, size))

    def forward(self, x0: Tensor) -> Tensor:
        """The logits, (B, size)."""
        h = self.stem(x0)
        for block in self.blocks:
            h = block(h)
        h = silu(self.norm(h))
        output: Tensor = self.head(adaptive_avg_pool2d(h, CELLS).flatten(1) if h.ndim == 4 else h)
        return output
