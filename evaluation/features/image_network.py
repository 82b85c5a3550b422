"""What features of image networks share: which images they take, how these are resized, and equal bits in any batch."""

from abc import abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor

from scorefield.evaluation.features import resize as resizing
from scorefield.evaluation.features.base import Features, StoredAs, block_size, in_blocks


class ImageNetwork(Features):
    """Features of a network of images of three channels; a subclass sets `_fingerprint`.

    Args:
        stored_as: how samples are stored: images of 1 or 3 channels with levels.
        resize: the name of a resizing.
        known: the names that there are.
        device: where the network runs.

    Raises:
        ValueError: for other samples, or an unknown name.
    """

    _fingerprint: str

    def __init__(self, stored_as: StoredAs, resize: str, known: Collection[str], device: torch.device | str) -> None:
        resizing.require_images(stored_as)
        if resize not in known:
            raise ValueError(f"expected resize to be one of {', '.join(known)}, got {resize!r}")
        self._stored_as, self._resize, self._device = stored_as, resize, torch.device(device)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        def block(part: Tensor) -> dict[str, Tensor]:
            found = self._of_images(resizing.three_channels(part.to(self._device), self._stored_as))
            return {name: value.float().cpu() for name, value in found.items()}

        return in_blocks(block, stored, block_size(self._device))

    @abstractmethod
    def _of_images(self, images: Tensor) -> dict[str, Tensor]:
        """The features of images (N, 3, H, W) with values 0 .. 255."""
