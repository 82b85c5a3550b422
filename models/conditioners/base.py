"""What every conditioner does: raw keywords of a denoiser become context tokens, or images beside x."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# What networks take, in the place of raw keywords: tokens (B, M, d) with their mask (B, M), and images (B, c, h, w).
READY = ("context", "context_mask", "concat")
Size = tuple[int, int] | None


class Conditioner(nn.Module, ABC):
    """Makes `context`, `context_mask` and `concat` of raw keywords, and knows its own "nothing".

    A sample without its keywords has "nothing": a learned token, or a constant image. Attributes:
        keywords: the raw keywords that it takes.
        context: the width d of its tokens, or None.
        concat: the channels of its images, or 0.
    """

    keywords: tuple[str, ...] = ()
    context: int | None = None
    concat: int = 0

    @abstractmethod
    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The ready keywords of raw ones, with a row for each sample.

        Args:
            raw: some of `keywords`.
            size: (h, w) of what the network sees, or None to keep the size of images.
        """

    @abstractmethod
    def nothing(self, batch: int, size: Size) -> dict[str, Tensor]:
        """The ready keywords of `batch` samples without conditioning."""

    def holds(self, raw: Mapping[str, Tensor]) -> Tensor | None:
        """Which samples hold anything, (B,); None where all do."""
        return None

    def prepare(self, raw: Mapping[str, Any], size: Size = None) -> dict[str, Any]:
        """The conditioning with ready keywords in the place of raw ones and of `known`; all else passes through.

        Sampling calls it once, and not at every step. What is absent stays absent.

        Args:
            raw: the conditioning of a batch. `known (B,)` is False for samples that have nothing.
            size: (h, w) of what the network sees, to which images are brought.

        Raises:
            ValueError: for raw and ready keywords together, or others than this conditioner takes.
        """
        own = {key: raw[key] for key in self.keywords if raw.get(key) is not None}
        ready = {key: raw[key] for key in READY if raw.get(key) is not None}
        rest = {key: value for key, value in raw.items() if key not in (*self.keywords, *READY, "known")}
        known = raw.get("known")
        if own and ready:
            raise ValueError(
                f"expected raw conditioning or prepared one, got {', '.join((*own, *ready))}: leave one out"
            )
        if own:
            _check_rows(own)
            ready = self.encode(own, size)
            full = self.holds(own)
            known = full if known is None else known if full is None else known & full
        if ready and known is not None:
            ready = _where(known, ready, self.nothing(1, _size_of(ready)))
        return {**rest, **ready}

    @property
    def dtype(self) -> torch.dtype:
        return next((weight.dtype for weight in self.parameters()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device | None:
        return next((weight.device for weight in self.parameters()), None)


def required(count: int | None, what: str, setting: str) -> int:
    """A number that the data decides; a configuration may leave it open, and a network may not.

    Raises:
        ValueError: if it is open.
    """
    if count is None:
        raise ValueError(f"expected {what} of the conditioner, got None: set conditioner.{setting}, or use such data")
    return count


def check_range(index: Tensor, low: int, high: int, what: str, remedy: str) -> None:
    """Raises ValueError for a number outside low .. high. On other devices than the CPU nothing waits to look."""
    if index.device.type != "cpu" or not index.numel():
        return
    least, most = int(index.min()), int(index.max())
    if least < low or most > high:
        raise ValueError(f"expected {what} within {low} .. {high}, got {least} to {most}: {remedy}")


def check_channels(name: str, images: Tensor, channels: int) -> None:
    """Raises ValueError unless these are images (B, channels, h, w)."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"expected {name} (B, {channels}, h, w), got {tuple(images.shape)}: give images as in training"
        )


def check_size(images: Tensor, size: Size, what: str, remedy: str) -> None:
    """Raises ValueError unless images have a size (h, w), if it is known."""
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        raise ValueError(f"expected {what}, {tuple(size)}, got one that gives {tuple(images.shape[2:])}: {remedy}")


def blank(batch: int, channels: int, size: Size, device: torch.device | None) -> Tensor:
    """Zeros (batch, channels, h, w).

    Raises:
        ValueError: without a size.
    """
    if size is None:
        raise ValueError(
            "expected images (B, C, H, W), because this conditioner gives images, got other data: use them"
        )
    return torch.zeros(batch, channels, *size, device=device)


def _check_rows(raw: Mapping[str, Tensor]) -> None:
    counts = {key: len(value) for key, value in raw.items()}
    if len({*counts.values()}) > 1:
        raise ValueError(f"expected a row for each sample in all conditioning, got {counts}: give as many of each")


def _size_of(ready: Mapping[str, Tensor]) -> Size:
    return (ready["concat"].shape[2], ready["concat"].shape[3]) if "concat" in ready else None


def _where(known: Tensor, ready: Mapping[str, Tensor], nothing: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is ready of samples that are known, and nothing of the others."""
    if {*ready} != {*nothing}:
        raise ValueError(
            f"expected {' and '.join(nothing)}, as the conditioner makes it, got {' and '.join(ready)}: pass raw "
            "keywords, or leave out known"
        )
    chosen = {}
    for key, value in ready.items():
        absent = nothing[key].to(value)
        if absent.shape[1:] != value.shape[1:]:
            raise ValueError(
                f"expected {key} (B, {', '.join(map(str, absent.shape[1:]))}), as the conditioner makes it, got "
                f"{tuple(value.shape)}: pass raw keywords, or leave out known"
            )
        chosen[key] = torch.where(known.to(value.device).reshape(-1, *(1,) * (value.ndim - 1)), value, absent)
    return chosen
