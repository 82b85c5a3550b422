"""Text as context tokens (Rombach et al. 2022, Appendix E.2.1)."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.functional import pad

from scorefield.models.conditioners.base import Size, check_range, required
from scorefield.models.conditioners.tokens import TokenConditioner
from scorefield.models.hyperparameters import save_hyperparameters


@save_hyperparameters
class TextTransformer(TokenConditioner):
    """`tokens (B, L)` of captions, with L up to `length`, as a context (B, length, width) by a transformer.

    The tokeniser is `models.text_tokens.WordPieces`. Token 0 is padding, and a row of padding alone is nothing. The
    defaults are a small one; the published one is width=1280, layers=32, vocabulary=30522.

    Args:
        vocabulary: the number of different tokens. None: training counts them in the captions.
        width: of a token.
        layers: of the transformer.
        heads: of each attention.
        head_width: channels of a head.
        length: tokens of a caption.
        masked: padding has no influence. In the published one it has.
        empty: the first tokens of an empty caption; (101, 102) for BERT's vocabulary.

    Raises:
        ValueError: without a vocabulary.
    """

    keywords = ("tokens",)

    def __init__(
        self,
        vocabulary: int | None = None,
        width: int = 128,
        layers: int = 2,
        heads: int = 8,
        head_width: int = 64,
        length: int = 77,
        masked: bool = False,
        empty: Sequence[int] = (),
    ) -> None:
        vocabulary = required(vocabulary, "the vocabulary", "vocabulary")
        super().__init__(vocabulary, length, width, layers, heads, head_width, 0, masked, empty)

    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        tokens = raw["tokens"]
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise ValueError(
                f"expected tokens (B, L), L up to {self.length}, got {tuple(tokens.shape)}: use the run's tokeniser"
            )
        check_range(tokens, 0, self.token.num_embeddings - 1, "tokens", "use the tokeniser of this run")
        return self.of_numbers(pad(tokens, (0, self.length - tokens.shape[1])))

    def holds(self, raw: Mapping[str, Tensor]) -> Tensor:
        return (raw["tokens"] != self.padding).any(1)
