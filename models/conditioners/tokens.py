"""A transformer over tokens by their numbers, and conditioners that are made of it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from scorefield.models.conditioners.base import Conditioner, Size
from scorefield.models.layers.attention import CrossAttention


class TokenConditioner(Conditioner):
    """A context (B, length, width) of token numbers (B, length), by a transformer that is normalised first.

    Every token has a learned embedding and its position another one. It attends to all tokens (no causal mask), as
    the text encoder of Rombach et al. 2022 does (Appendix E.2.1).

    Args:
        vocabulary: token numbers are 0 .. vocabulary - 1.
        length: of a sequence.
        width: of a token.
        layers: how many, of attention and a perceptron of 4 width each.
        heads: of each attention.
        head_width: channels of a head.
        padding: the number of a token that says nothing.
        masked: padding has no influence: it is hidden from the transformer and from the network.
        empty: the first tokens of a sequence that says nothing; the rest is padding.
    """

    empty: Tensor

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        head_width: int,
        padding: int,
        masked: bool,
        empty: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.context, self.length, self.padding, self.masked = width, length, padding, masked
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.layers = nn.ModuleList(Layer(width, heads, head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.token, self.position):
            # Both together have unit variance, as what a layer adds. With 0.02 the mean over tokens, which attention
            # adds to each, would hide them: normalised tokens of a caption would start nearly alike.
            nn.init.normal_(table.weight, std=math.sqrt(0.5))
        row = torch.full((length,), padding)
        row[: len(empty)] = torch.tensor(tuple(empty), dtype=torch.int64)
        self.register_buffer("empty", row, persistent=False)

    def of_numbers(self, tokens: Tensor) -> dict[str, Tensor]:
        """The context of token numbers (B, length), and its mask where padding is hidden."""
        mask = None
        if self.masked:
            mask = tokens != self.padding
            mask = torch.cat([mask[:, :1] | ~mask.any(1, keepdim=True), mask[:, 1:]], 1)  # one token is always seen
        h = self.token(tokens) + self.position.weight
        for layer in self.layers:
            h = layer(h, mask)
        context = {"context": self.norm(h)}
        return context if mask is None else {**context, "context_mask": mask}

    def nothing(self, batch: int, size: Size) -> dict[str, Tensor]:
        row = self.of_numbers(self.empty[None])
        return {key: value.expand(batch, *value.shape[1:]) for key, value in row.items()}


class Layer(nn.Module):
    """h + A(LN(h)), and then h + P(LN(h)): attention over tokens (B, L, width), and a perceptron of GELUs."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, head_width=head_width)
        self.norm_perceptron = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        h = h + self.attention(self.norm_attention(h), mask=mask)
        output: Tensor = h + self.contract(gelu(self.expand(self.norm_perceptron(h))))
        return output
