"""A classifier of noisy images or vectors that knows their noise level."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.embeddings import NoiseEmbedding
from scorefield.models.layers.norm import make_norm
from scorefield.models.networks.mlp import MLPBlock
from scorefield.models.precondition import noise_level
from scorefield.sde_lib.broadcast import Scale, expand, precise

SMALLEST = 4  # side of an image that is not halved again


@save_hyperparameters
class NoisyClassifier(nn.Module):
    """Logits of p(class | x = alpha x0 + sigma eps), of x / |(alpha, sigma)| and the noise level.

    For images it is the first half of a U-Net, as in Dhariwal and Nichol 2021 (Section 4.1), made smaller. Its residual
    blocks have a second norm that the noise level scales and shifts. They are halved until 4 to 7 pixels remain. There
    it has attention, and the mean over places, where theirs pools by attention. For other data it is a residual
    perceptron.

    Args:
        shape: of one sample, (C, H, W) or any other (*D).
        num_classes: K.
        width: channels at full size, doubled at each halving up to four times; a perceptron has four times this.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.embed = NoiseEmbedding(64, 4 * width)
        self.stem: nn.Module
        blocks: list[nn.Module] = []
        if len(self.shape) == 3:
            self.stem, last = nn.Conv2d(self.shape[0], width, 3, padding=1), width
            side, level = min(self.shape[1:]), 1
            blocks.append(ResidualBlock(width, width, 4 * width, scale_shift=True))
            while side >= 2 * SMALLEST and all(length % 2**level == 0 for length in self.shape[1:]):
                before, last = last, width * min(2**level, 4)
                blocks.append(ResidualBlock(before, last, 4 * width, resample=False, scale_shift=True))
                side, level = side // 2, level + 1
            self.attention: nn.Module = Attention(last)
            self.norm: nn.Module = make_norm(last)
        else:
            last = 4 * width
            self.stem = nn.Linear(math.prod(self.shape), last)
            blocks += [MLPBlock(last) for _ in range(3)]
            self.attention, self.norm = nn.Identity(), nn.LayerNorm(last)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(last, num_classes)

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The logits, (B, K)."""
        output: Tensor = self.head(self.hidden(x, alpha, sigma))
        return output.to(x.dtype)

    def hidden(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """What the last layer takes, (B, d): a description of the samples."""
        alpha, sigma = precise(alpha), precise(sigma)
        level = noise_level(alpha, sigma).to(x.device, self.head.weight.dtype)
        emb = self.embed(level.expand(len(x)))
        h = (expand(1 / torch.hypot(alpha, sigma), x) * x).to(self.head.weight.dtype)
        h = self.stem(h if len(self.shape) == 3 else h.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        h = silu(self.norm(self.attention(h)))
        return h.mean((2, 3)) if h.ndim == 4 else h
