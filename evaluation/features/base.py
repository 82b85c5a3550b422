"""What features are: a function of stored samples, with the recipe that names it in a report."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredAs:
    """How samples are stored, as a data set stores them.

    Args:
        shape: of one sample, *D; channel-first for images.
        levels: the number of values of an entry, integers from 0; None for continuous values.
    """

    shape: tuple[int, ...]
    levels: int | None

    @property
    def is_image(self) -> bool:
        """Whether a sample is (C, H, W)."""
        return len(self.shape) == 3

    def unit(self, stored: Tensor) -> Tensor:
        """Stored values in float32: levels as 0 .. 1, continuous values unchanged."""
        return stored.float() if self.levels is None else stored.float() / (self.levels - 1)

    def bytes(self, stored: Tensor) -> Tensor:
        """Levels as whole numbers 0 .. 255 in float32, as an image file would hold them.

        Raises:
            ValueError: for continuous values.
        """
        if self.levels is None:
            raise ValueError(
                "expected images with levels, such as bytes, for features of an image network, got continuous values: "
                "take --features=random, pixels or own"
            )
        return stored.float() if self.levels == 256 else (self.unit(stored) * 255).round()


class Features(ABC):
    """A function of stored samples (N, *D) to features (N, d), float32 on the CPU.

    The features of a sample depend on nothing else, so they can be computed in any batches and kept.
    """

    @property
    @abstractmethod
    def recipe(self) -> str:
        """What makes the features, for a report: as `inception-2015-12-05, tf resize`."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of every setting: equal ones give equal features."""

    @abstractmethod
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        """The features of stored samples (N, *D), by name.

        `features` (N, d) are always there. Networks that have them add `spatial` (N, s), for sFID, and
        `probabilities` (N, C) of classes, for the Inception score.
        """

    def of(self, stored: Tensor, batch: int = 64) -> dict[str, Tensor]:
        """The features of many samples, `batch` at once."""
        parts = [self(part) for part in torch.split(stored, batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
