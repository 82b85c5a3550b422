"""What features are: a function of stored samples, with the recipe that names it in a report."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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

    def check(self, stored: Tensor) -> None:
        """Refuse what is no batch of such samples.

        Raises:
            ValueError: unless it is (N, *D) with at least one sample, and every value is a level or a finite number.
        """
        shape, kind = ", ".join(map(str, self.shape)), "continuous values" if self.levels is None else "levels"
        expected = f"expected samples (N, {shape}) of {kind} for features"
        if tuple(stored.shape[1:]) != self.shape or stored.ndim == 0:
            raise ValueError(f"{expected}, got {tuple(stored.shape)}: give samples of the shape of the data")
        if not len(stored):
            raise ValueError(f"{expected}, got none: give at least one sample")
        if stored.is_floating_point() and not bool(stored.isfinite().all()):
            raise ValueError(f"{expected}, got NaN or infinity: leave those samples out, and count them")
        if self.levels is None:
            return
        low, high = float(stored.min()), float(stored.max())
        if low < 0 or high >= self.levels or (stored.is_floating_point() and bool((stored != stored.round()).any())):
            raise ValueError(
                f"{expected}, integers 0 .. {self.levels - 1}, got values of {low:g} .. {high:g}: store them as the "
                "data set does"
            )

    def unit(self, stored: Tensor) -> Tensor:
        """Stored values in float32: levels as 0 .. 1, continuous values unchanged. See `check` for what it raises."""
        self.check(stored)
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
        unit = self.unit(stored)
        return stored.float() if self.levels == 256 else (unit * 255).round()


class Features(ABC):
    """A function of stored samples (N, *D) to features (N, d), float32 on the CPU.

    The features of a sample depend on nothing else, so they can be computed in any batches and kept. Some kinds are
    fitted to reference samples first; the rest of their life they depend on the sample alone.
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

    def fitted(self, reference: Tensor) -> "Features":
        """These features, fitted to stored reference samples (M, *D) where their kind needs it; most do not."""
        return self

    def of(self, stored: Tensor, batch: int = 64) -> dict[str, Tensor]:
        """The features of many samples, `batch` at once."""
        parts = [self(part) for part in torch.split(stored, batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def in_blocks(function: Callable[[Tensor], dict[str, Tensor]], stored: Tensor, size: int) -> dict[str, Tensor]:
    """What a function says of samples (N, *D), called with exactly `size` of them each time.

    The last block is filled up with zeros. Products of matrices round otherwise in a batch of another size, so that
    results to the last bit would depend on how samples are spread over batches and ranks. On a GPU, convolutions keep
    all digits of float32.
    """
    count = len(stored)
    filled = torch.cat([stored, stored.new_zeros(-count % size, *stored.shape[1:])])
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        parts = [function(block) for block in torch.split(filled, size)]
    return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def block_size(device: torch.device) -> int:
    """How many images an image network sees at once: few on a CPU, where their activations then stay in its cache."""
    return 4 if device.type == "cpu" else 64


def evenly_spaced(samples: Tensor, most: int) -> Tensor:
    """At most `most` of the samples (N, *D), evenly spaced, the first and the last included."""
    return samples[torch.linspace(0, len(samples) - 1, min(len(samples), most), dtype=torch.float64).long()]


def fingerprint_of(state: Mapping[str, Tensor], *settings: object) -> str:
    """SHA-256 of tensors with their names, in the order of the names, and of the settings."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    digest.update(repr(settings).encode())
    return digest.hexdigest()
