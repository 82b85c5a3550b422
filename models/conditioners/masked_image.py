"""A masked image beside x, for inpainting (Rombach et al. 2022, Section 4.5)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scorefield.models.conditioners.base import Conditioner, Size, blank, check_channels, check_size
from scorefield.models.hyperparameters import save_hyperparameters


@save_hyperparameters
class MaskedImage(Conditioner):
    """`masked (B, c, h, w)`, the codes of the masked image, and `mask (B, 1, H, W)` as concat (B, c + 1, h, w).

    The mask is 1 or true where the image is missing, and may have the image's size: the nearest value counts. The
    network sees it as -1 and 1, as published. Zero codes with all of the image missing are nothing.

    Args:
        channels: of the codes.
    """

    keywords = ("masked", "mask")

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.concat = channels, channels + 1

    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        if len(raw) < 2:
            raise ValueError(f"expected masked and mask together, got only {', '.join(raw)}: give both")
        masked, mask = raw["masked"], raw["mask"]
        check_channels("masked", masked, self.channels)
        check_channels("mask", mask, 1)
        check_size(masked, size, "masked in the size of the codes", "give the codes of the masked image")
        mask = mask.to(masked)
        if mask.shape[2:] != masked.shape[2:]:
            mask = interpolate(mask, size=masked.shape[2:], mode="nearest")
        return {"concat": torch.cat([masked, 2 * mask - 1], 1)}

    def nothing(self, batch: int, size: Size) -> dict[str, Tensor]:
        codes = blank(batch, self.channels, size, self.device)
        return {"concat": torch.cat([codes, torch.ones_like(codes[:, :1])], 1)}
