"""From image files to pixels of one shape: sizes, channels, depths, and the keywords that every reader has for them."""

import functools
import inspect
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from scorefield.training.data.dataset import Dataset

FITS = ("resize_crop", "resize", "crop")
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CORRUPT = ("error", "skip")
SMALL, LARGEST_KEPT = 32, 128  # pixels of a side, where the size is chosen
GREY = {"1", "L", "LA", "La"}
LARGEST = 1 << 27  # pixels of an image that is resized before it is cropped
TURNS = {  # by the rotation flag of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = {TURNS[i] for i in (5, 6, 7, 8)}  # width and height change places
WIDE = {"I", "F"}  # modes of 32 bits: integers and floats
DEEP = {"I;16", "I;16B", "I;16L", "I"}  # the modes that versions of Pillow have for 16-bit greyscale


class DamagedImageError(ValueError):
    """An image file that cannot be read."""


class Kind(NamedTuple):
    """What the head of an image file says."""

    width: int
    height: int
    grey: bool
    deep: bool  # 16 bits
    several: bool  # frames, of which the first is read


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels, and where these are kept: the keywords of every reader of image files.

    Args:
        size: the pixels of a side, or (height, width); 0 keeps the images as they are, which must have one size; None
            is their size if that suits a small network, else 32 (see `suitable`).
        fit: how an image gets that size: "resize_crop" resizes the shorter side and crops the centre,
            "resize" stretches, "crop" crops the centre and never resizes.
        crop: the side of a square that is cropped from the centre before anything else; 0 for none.
        resample: the filter of resizing: nearest, box, bilinear, hamming, bicubic or lanczos, all antialiased.
        channels: 1 or 3; 0 is 1 if every image is greyscale, else 3.
        alpha: transparency: "drop" it, "keep" it as a fourth channel, or lay the image on a colour, as "white" or
            "#ff8800".
        bits: 8 takes the upper 8 of 16; 0 leaves 16-bit greyscale as it is.
        exif: whether the camera's rotation flag is applied; that of a TIFF always is.
        corrupt: "error", or "skip" files that cannot be read; the data set's `skipped` names them.
        cache: the folder that keeps the decoded images; "" is .scorefield beside the data, if that can be written;
            "off" keeps them in memory.

    Raises:
        ValueError: if one of these is something else.
    """

    size: int | Sequence[int] | None = 0
    fit: str = "resize_crop"
    crop: int = 0
    resample: str = "bicubic"
    channels: int = 0
    alpha: str = "drop"
    bits: int = 0
    exif: bool = True
    corrupt: str = "error"
    cache: str | os.PathLike[str] = ""

    def __post_init__(self) -> None:
        sides = _sides(self.size or 0)
        if self.size not in (0, None) and (len(sides) != 2 or min(sides) < 1):
            raise ValueError(
                f"expected size of a side, or (height, width), in pixels, got {self.size}: give size=64 or size=(64,48)"
            )
        choices = (("fit", FITS), ("resample", FILTERS), ("corrupt", CORRUPT))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} to be one of {', '.join(known)}, got {getattr(self, name)!r}: choose one"
                )
        if self.crop < 0:
            raise ValueError(f"expected crop of at least 1 pixel, or 0, got {self.crop}: give 0 for no crop")
        if self.channels not in (0, 1, 3) or (self.alpha == "keep" and self.channels):
            raise ValueError(
                f"expected channels of 1, 3 or 0 (and 0 with alpha='keep', which makes four), got {self.channels}: "
                "choose one"
            )
        if self.bits not in (0, 8):
            raise ValueError(f"expected bits of 8, or 0 for what the images have, got {self.bits}: choose one")
        if self.alpha not in ("drop", "keep"):
            try:
                ImageColor.getrgb(self.alpha)
            except ValueError:
                raise ValueError(
                    f"expected alpha to be drop, keep or a colour as white, got {self.alpha!r}: choose one"
                ) from None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of the result, if the settings fix them."""
        if self.size:
            height, width = _sides(self.size)
            return height, width
        return (self.crop, self.crop) if self.crop else None

    def smallest(self) -> tuple[int, int]:
        """The least height and width that an image needs for every crop to lie inside it."""
        crop = self.crop or 1
        height, width = self.sides if self.sides and self.fit == "crop" else (1, 1)
        return max(crop, height), max(crop, width)

    def pixels(self, image: Image.Image, mode: str | None) -> NDArray[Any]:
        """An opened image as (C, H, W), in a mode of Pillow; None is 16-bit greyscale."""
        turn = _turn(image) if self.exif else None
        image = image if turn is None else image.transpose(turn)
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
        if not self.size or self.sides is None:
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


def image_reader(read: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """Replaces a reader's argument `decoding` by the keywords of `Decoding`, in its signature too.

    `folder(path, size=64)` calls the function below the decorator with `decoding=Decoding(size=64)`.
    """
    shared = inspect.signature(Decoding).parameters

    @functools.wraps(read)
    def reader(*args: Any, **keywords: Any) -> Dataset:
        decoding = Decoding(**{key: keywords.pop(key) for key in shared if key in keywords})
        return read(*args, decoding=decoding, **keywords)

    own = inspect.signature(read)
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "decoding"]
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shared.values()]
    reader.__dict__["__signature__"] = own.replace(parameters=parameters)
    return reader


def kind_of(file: BinaryIO, exif: bool = True) -> Kind:
    """What the head of an image file says; its size after the camera's rotation, with `exif`.

    Raises:
        ValueError: if its pixels are numbers of 32 bits.
        Exception: anything, if it is damaged.
    """
    with Image.open(file) as image:
        if image.mode in WIDE and image.format not in ("PNG", "PPM"):
            raise ValueError(f"pixels of mode {image.mode}, numbers of 32 bits: save such data as an array, .npy")
        deep = image.mode in DEEP or _sixteen_bits(image)
        turned = exif and _turn(image) in TURNED
        width, height = image.size[::-1] if turned else image.size
        several = image.format != "MPO" and bool(getattr(image, "is_animated", False))  # MPO: a photo and its preview
        return Kind(width, height, image.mode in GREY | DEEP, deep, several)


def _sixteen_bits(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel, of which Pillow reads the upper 8."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    if image.format in ("PNG", "TIFF"):
        return any("16" in str(each if isinstance(each, str) else each[0]) for each in arguments)
    return image.format == "PPM" and any(isinstance(each, tuple) and each[-1] > 255 for each in arguments)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the camera's rotation flag turns an image that has not been decoded."""
    # Pillow turns a TIFF itself. In a PNG the flag may follow the pixels, which would have to be decoded for it.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return None
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data, which Pillow reads to any error
        return None


def suitable(sizes: Collection[tuple[int, int]]) -> int | tuple[int, int]:
    """The `size` for a first training on images of these (width, height).

    Images of one size of at most 128 pixels a side, which divides by 4 for a network's levels, keep it. Others become
    32 x 32.
    """
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    if not 0 < min(width, height) <= max(width, height) <= LARGEST_KEPT or width % 4 or height % 4:
        return SMALL
    return width if width == height else (height, width)


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


def _sides(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else [int(side) for side in size]
