"""A residual perceptron for vectors, or anything flattened to one."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.embeddings import NoiseEmbedding
from scorefield.models.layers.initial import zeroed


@save_hyperparameters
class MLP(nn.Module):
    """F(x, c_noise, label) by residual blocks  h + W2 silu(W1 silu(LN(h)) + emb),  emb the embedded noise level.

    Args:
        shape: of one sample, (*D).
        width: of the hidden layers.
        blocks: how many residual blocks.
        num_classes: with it, the network takes `label (B,)`; no label means "unknown".
        code_size: with it, the network takes `code (B, code_size)` of a path with a latent code.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        blocks: int = 3,
        num_classes: int | None = None,
        code_size: int | None = None,
    ) -> None:
        super().__init__()
        dims = math.prod(shape)
        self.unknown_label = num_classes
        self.embed = NoiseEmbedding(64, width, num_classes, code_size=code_size)
        self.stem = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = zeroed(nn.Linear(width, dims))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, *D)."""
        emb = self.embed(c_noise, label, code)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        output: Tensor = self.head(silu(self.norm(h)))
        return output.reshape(x.shape)


class MLPBlock(nn.Module):
    """h + W2 silu(W1 silu(LN(h)) + W emb), on (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.second = zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        inner = self.first(silu(self.norm(h))) + self.project(silu(emb))
        output: Tensor = h + self.second(silu(inner))
        return output
