"""The class as a token of the context (Rombach et al. 2022, Appendix E.1)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scorefield.models.conditioners.base import Conditioner, Size, check_range
from scorefield.models.hyperparameters import save_hyperparameters


@save_hyperparameters
class ClassTokens(Conditioner):
    """`label (B,)` as one learned token, context (B, 1, width).

    Args:
        num_classes: labels are 0 .. num_classes - 1; num_classes itself means "unknown", and is nothing.
        width: of the token.

    Raises:
        ValueError: without classes.
    """

    keywords = ("label",)

    def __init__(self, num_classes: int | None, width: int = 512) -> None:
        super().__init__()
        if num_classes is None:
            raise ValueError(
                "expected classes for class tokens, got none: use a data set with classes and training.labels=true"
            )
        self.num_classes, self.context = num_classes, width
        self.embed = nn.Embedding(num_classes + 1, width)

    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        label = raw["label"]
        if label.ndim != 1:
            raise ValueError(f"expected label (B,), got {tuple(label.shape)}: give one class for each sample")
        check_range(label, 0, self.num_classes, "label", "give classes of this run")
        return {"context": self.embed(label)[:, None]}

    def nothing(self, batch: int, size: Size) -> dict[str, Tensor]:
        unknown = torch.tensor([self.num_classes], device=self.device)
        return {"context": self.embed(unknown)[:, None].expand(batch, -1, -1)}
