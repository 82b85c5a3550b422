"""A layout of boxes as context tokens (Rombach et al. 2022, Appendix E.2.1)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from scorefield.models.conditioners.base import Size, check_range, required
from scorefield.models.conditioners.tokens import TokenConditioner
from scorefield.models.hyperparameters import save_hyperparameters

OF_A_BOX = 3  # tokens: its class, its first corner, its second one


@save_hyperparameters
class Boxes(TokenConditioner):
    """`boxes (B, K, 5)` = class, x0, y0, x1, y1 as a context (B, 3 boxes, width) by a transformer.

    A box is three tokens: its class, and the number of each corner on a grid,
        round((sections - 1) y) sections + round((sections - 1) x),    x, y in 0 .. 1.
    Class -1 is no box, and a row without boxes is nothing.

    Args:
        classes: of boxes, numbered from 0. None: training counts them in the data.
        boxes: how many a sample has at most.
        sections: of the grid, along a side.
        width: of a token.
        layers: of the transformer.
        heads: of each attention.
        head_width: channels of a head.
        masked: the places of absent boxes have no influence. In the published one they have.
        vocabulary: a number for the published numbering, in which classes and corners share numbers from 0 on.
        crop: two more tokens with the corners of the image, as published.

    Raises:
        ValueError: without classes, or if a vocabulary has no room for the classes and the grid.
    """

    keywords = ("boxes",)

    def __init__(
        self,
        classes: int | None = None,
        boxes: int = 30,
        sections: int = 32,
        width: int = 128,
        layers: int = 2,
        heads: int = 8,
        head_width: int = 64,
        masked: bool = True,
        vocabulary: int | None = None,
        crop: bool = False,
    ) -> None:
        classes = required(classes, "the number of box classes", "classes")
        self.classes, self.boxes, self.sections, self.crop = classes, boxes, sections, crop
        self.first_corner = classes if vocabulary is None else 0
        size = classes + sections**2 + 1 if vocabulary is None else vocabulary
        if size <= max(classes, sections**2):
            raise ValueError(
                f"expected a vocabulary above {max(classes, sections**2)}, for {classes} classes and a grid of "
                f"{sections} x {sections}, got {size}: give a larger one, or fewer sections"
            )
        super().__init__(size, OF_A_BOX * boxes + 2 * crop, width, layers, heads, head_width, size - 1, masked)

    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        return self.of_numbers(self.numbers(raw["boxes"]))

    def holds(self, raw: Mapping[str, Tensor]) -> Tensor:
        return (raw["boxes"][..., 0] >= 0).any(1)

    def numbers(self, boxes: Tensor) -> Tensor:
        """The token numbers (B, 3 boxes) of a layout (B, K, 5).

        Raises:
            ValueError: for another shape, more boxes, or a class that is none.
        """
        if boxes.ndim != 3 or boxes.shape[2] != 5 or boxes.shape[1] > self.boxes:
            raise ValueError(
                f"expected boxes (B, K, 5), K up to {self.boxes}, each class, x0, y0, x1, y1, got "
                f"{tuple(boxes.shape)}: correct them, or allow more (conditioner.boxes)"
            )
        kind = boxes[..., 0].long()
        check_range(kind, -1, self.classes - 1, "classes of boxes", "correct them, or set conditioner.classes")
        places = boxes[..., 1:].masked_fill(kind[..., None] < 0, 0.0)  # those of absent boxes may be anything
        x, y = (places.reshape(*kind.shape, 2, 2) * (self.sections - 1)).round().long().unbind(-1)
        check_range(torch.stack([x, y]), 0, self.sections - 1, "corners on the grid", "give coordinates in 0 .. 1")
        corners = self.first_corner + y * self.sections + x
        tokens = torch.cat([kind[..., None], corners], 2).masked_fill(kind[..., None] < 0, self.padding).flatten(1)
        tokens = pad(tokens, (0, OF_A_BOX * self.boxes - tokens.shape[1]), value=self.padding)
        if not self.crop:
            return tokens
        image = torch.tensor([0, self.sections**2 - 1], device=tokens.device) + self.first_corner
        return torch.cat([tokens, image.expand(len(tokens), -1)], 1)
