"""From image files to pixels of one shape: how images of mixed sizes, channels and depths are made alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

FITS = ("resize_crop", "resize", "crop")
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
GREY = {"1", "L", "LA", "La"}
LARGEST = 1 << 27  # pixels of an image that is resized before it is cropped
DEEP = {"I;16", "I;16B", "I;16L", "I"}  # what Pillow, old and new, calls 16-bit greyscale


class DamagedImageError(ValueError):
    """An image file that cannot be read."""


class Kind(NamedTuple):
    """What the head of an image file tells of it."""

    width: int
    height: int
    grey: bool
    deep: bool  # 16 bits


@dataclass(frozen=True)
class Decoding:
    """What is made of each image.

    Args:
        size: the pixels of a side, or (height, width); 0 takes images that have one size, as they are.
        fit: how an image comes to that size: "resize_crop" resizes the shorter side and crops the centre,
            "resize" stretches, "crop" crops the centre and never resizes.
        crop: the side of a square that is cropped from the centre before anything else; 0 for none.
        resample: the filter of resizing: nearest, box, bilinear, hamming, bicubic or lanczos, all antialiased.
        channels: 1 or 3; 0 is 1 if every image is greyscale, else 3.
        alpha: transparency: "drop" it, "keep" it as a fourth channel, or lay the image on a colour, as "white" or
            "#ff8800".
        bits: 8 takes the upper 8 of 16; 0 leaves 16-bit greyscale as it is.

    Raises:
        ValueError: if one of these is something else.
    """

    size: int | Sequence[int] = 0
    fit: str = "resize_crop"
    crop: int = 0
    resample: str = "bicubic"
    channels: int = 0
    alpha: str = "drop"
    bits: int = 0

    def __post_init__(self) -> None:
        sides = _sides(self.size)
        if self.size != 0 and (len(sides) != 2 or min(sides) < 1):
            raise ValueError(f"expected size of a side, or (height, width), in pixels, got {self.size}: give it so")
        for name, value, known in (("fit", self.fit, FITS), ("resample", self.resample, FILTERS)):
            if value not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}: choose one")
        if self.crop < 0:
            raise ValueError(f"expected crop of at least 1 pixel, or 0, got {self.crop}")
        if self.channels not in (0, 1, 3) or (self.alpha == "keep" and self.channels):
            raise ValueError(
                f"expected channels of 1, 3 or 0 (and 0 with alpha='keep', which makes four), got {self.channels}"
            )
        if self.bits not in (0, 8):
            raise ValueError(f"expected bits of 8, or 0 for what the images have, got {self.bits}")
        if self.alpha not in ("drop", "keep"):
            try:
                ImageColor.getrgb(self.alpha)
            except ValueError:
                raise ValueError(f"expected alpha to be drop, keep or a colour as white, got {self.alpha!r}") from None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of the result, if they are given."""
        if self.size != 0:
            height, width = _sides(self.size)
            return height, width
        return (self.crop, self.crop) if self.crop else None

    def needs(self) -> tuple[int, int]:
        """The least height and width of an image that none of its crops lacks pixels of."""
        crop = self.crop or 1
        height, width = self.sides if self.sides and self.fit == "crop" else (1, 1)
        return max(crop, height), max(crop, width)

    def pixels(self, image: Image.Image, mode: str | None) -> NDArray[Any]:
        """An opened image as (C, H, W), in a mode of Pillow; None is 16-bit greyscale."""
        if mode is None:
            deep = image.convert("I") if self.sides else image
            return np.asarray(self._fitted(deep)).clip(0, 65535).astype(np.uint16)[None]
        if image.mode in DEEP:
            image = Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
        if self.alpha == "drop":
            image.info.pop("transparency", None)  # or Pillow warns of it
        elif self.alpha != "keep":
            below = Image.new("RGBA", image.size, self.alpha)
            image = Image.alpha_composite(below, image.convert("RGBA"))
        pixels = np.asarray(self._fitted(image.convert(mode)), np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _fitted(self, image: Image.Image) -> Image.Image:
        if self.crop:
            image = _centre(image, self.crop, self.crop)
        if self.size == 0 or self.sides is None:
            return image
        height, width = self.sides
        if self.fit != "crop" and image.size != (width, height):
            to = (width, height)
            if self.fit == "resize_crop":
                scale = max(width / image.width, height / image.height)
                to = max(width, round(image.width * scale)), max(height, round(image.height * scale))
                if to[0] * to[1] > LARGEST:
                    raise ValueError(f"{image.width}x{image.height} is too long for {width}x{height}: crop it yourself")
            image = image.resize(to, Image.Resampling[self.resample.upper()])
        return _centre(image, height, width)


def kind_of(file: BinaryIO) -> Kind:
    """What the head of an image file tells.

    Raises:
        Exception: anything, if it is damaged.
    """
    with Image.open(file) as image:
        deep = image.mode in DEEP or any("16" in str(tile[3]) for tile in image.tile if image.format == "PNG")
        return Kind(image.width, image.height, image.mode in GREY | DEEP, deep)


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


def _sides(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else [int(side) for side in size]
