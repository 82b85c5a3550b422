"""A semantic map as images beside x (Rombach et al. 2022, Section 4.3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scorefield.models.conditioners.base import Conditioner, Size, blank, check_range, check_size, required
from scorefield.models.hyperparameters import save_hyperparameters


@save_hyperparameters
class SemanticMap(Conditioner):
    """`map (B, H, W)` of classes as concat (B, out, h, w): one channel a class, halved bilinearly, then a 1x1 kernel.

    Class -1 is none: its place is zero in all channels. Zeros are nothing.

    Args:
        classes: of the map, numbered from 0. None: training counts them in the data.
        halvings: of the height and width, so that 2^halvings is the factor of the autoencoder.
        out: channels that the kernel leaves.

    Raises:
        ValueError: without classes.
    """

    keywords = ("map",)

    def __init__(self, classes: int | None = None, halvings: int = 2, out: int = 3) -> None:
        super().__init__()
        self.classes = required(classes, "the number of map classes", "classes")
        self.halvings, self.concat = halvings, out
        self.project = nn.Conv2d(self.classes, out, 1, bias=False)

    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        kinds = raw["map"]
        if kinds.ndim != 3:
            raise ValueError(f"expected a map (B, H, W) of classes, got {tuple(kinds.shape)}: leave out its channels")
        check_range(kinds, -1, self.classes - 1, "classes of the map", "correct them, or set conditioner.classes")
        numbers = torch.arange(self.classes, device=kinds.device)[:, None, None]
        h = (kinds[:, None] == numbers).to(self.dtype)
        for _ in range(self.halvings):
            h = interpolate(h, scale_factor=0.5, mode="bilinear")
        concat: Tensor = self.project(h)
        check_size(concat, size, f"a map 2^{self.halvings} times as large as the codes", "set conditioner.halvings")
        return {"concat": concat}

    def nothing(self, batch: int, size: Size) -> dict[str, Tensor]:
        return {"concat": blank(batch, self.concat, size, self.device)}
