"""Image files, wherever they lie, as an array: their heads fix the layout, then all cores decode."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scorefield.training.data.files.decoding import DamagedImageError, Decoding, Kind, kind_of
from scorefield.training.data.files.names import counted

T = TypeVar("T")
# Formats of Pillow that need another program, or that it only recognises.
UNREADABLE = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
CHUNK_IMAGES = 256  # images that are read before they are decoded
# Bytes of these images, files and pixels together: at this size a chunk is decoded earlier.
CHUNK_BYTES = 1 << 28
# Bytes of a file: about the pixels of the largest image that Pillow opens.
LARGEST = 1 << 29
# Bytes read in a call: a file that decompresses to far more exceeds LARGEST by no more than this.
PIECE = 1 << 14


@cache
def image_suffixes() -> frozenset[str]:
    """The endings of the files that Pillow reads, as ".png"."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name in Image.OPEN and name not in UNREADABLE)


@dataclass(frozen=True)
class Item:
    """An image file: its name in messages, how it is opened, and its caption, if images of its set have captions."""

    name: str
    open: Callable[[], BinaryIO]
    caption: str | None = None

    @classmethod
    def of(cls, file: Path) -> "Item":
        """A file on the disk."""
        return cls(str(file), lambda: file.open("rb"))


@dataclass(frozen=True)
class Layout:
    """What all images become: a mode of Pillow (None for 16-bit greyscale) and a shape (C, H, W)."""

    mode: str | None
    shape: tuple[int, int, int]

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.mode is None else np.uint8

    @property
    def levels(self) -> int:
        return 65536 if self.mode is None else 256


@dataclass
class Images:
    """The images of `items` at `index`, all of one layout. All items decide the layout, so that two splits agree.

    Args:
        items: the files.
        index: which of them to decode.
        decoding: into what.

    Raises:
        ValueError: if they differ and the decoding does not make them alike, or one cannot be read.
    """

    items: Sequence[Item]
    index: Sequence[int] | NDArray[np.int64]
    decoding: Decoding = field(default_factory=Decoding)
    kept: list[int] = field(default_factory=list, init=False)  # places in `index`; complete after `chunks`
    skipped: list[str] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.layout = self._inspect()

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The images in order, in chunks (n, C, H, W)."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for places, contents in self._read():
                good = []
                for place, pixels in zip(places, pool.map(self._decoded, places, contents), strict=True):
                    if not isinstance(pixels, DamagedImageError):
                        self.kept.append(place)
                        good.append(pixels)
                    elif self.decoding.corrupt == "error":
                        raise pixels
                    else:
                        self.skipped.append(self.items[self.index[place]].name)
                if good:
                    yield np.stack(good)
        if not self.kept:
            raise ValueError(
                f"expected images, and none of {len(self.index)} can be read, as {self.skipped[0]}: repair them"
            )

    def _read(self) -> Iterator[tuple[list[int], list[bytes | DamagedImageError]]]:
        """Places in `index` and the files there, in chunks; by one thread, since archives are read in order."""
        each = prod(self.layout.shape) * np.dtype(self.layout.dtype).itemsize
        places: list[int] = []
        contents: list[bytes | DamagedImageError] = []
        size = 0
        for place, i in enumerate(self.index):
            content = _try(self.items[i], partial(content_of, self.items[i]))
            places.append(place)
            contents.append(content)
            size += each + (len(content) if isinstance(content, bytes) else 0)
            if len(places) == CHUNK_IMAGES or size >= CHUNK_BYTES:
                yield places, contents
                places, contents, size = [], [], 0
        if places:
            yield places, contents

    def _decoded(self, place: int, content: bytes | DamagedImageError) -> NDArray[Any] | DamagedImageError:
        def pixels(content: bytes) -> NDArray[Any]:
            with Image.open(BytesIO(content)) as image:
                return self.decoding.pixels(image, self.layout.mode)

        if isinstance(content, DamagedImageError):
            return content
        return _try(self.items[self.index[place]], partial(pixels, content))

    def _inspect(self) -> Layout:
        kinds: dict[str, Item] = {}  # each kind of image seen, and the first of it
        first: tuple[Item, Kind] | None = None
        colour_16 = None
        moving: list[str] = []  # files of several frames
        for item in self.items:
            kind = _try(item, partial(_kind, item, self.decoding.exif))
            if isinstance(kind, DamagedImageError):
                if self.decoding.corrupt == "error":
                    raise kind
                continue
            first = first or (item, kind)
            moving += [item.name] if kind.several else []
            self._check_size(item, kind, first)
            deep = kind.deep and not self.decoding.bits
            kinds.setdefault("16-bit" if deep else "8-bit", item)
            kinds.setdefault("grey" if kind.grey else "colour", item)
            if deep and (not kind.grey or self.decoding.channels == 3 or self.decoding.alpha != "drop"):
                colour_16 = colour_16 or item
        if first is None:
            raise ValueError(
                f"expected images, and none of {len(self.items)} can be read, as {self.items[0].name}: repair them"
            )
        if "16-bit" in kinds and "8-bit" in kinds:
            raise ValueError(
                f"expected images of one depth, got {kinds['16-bit'].name} of 16 bits and {kinds['8-bit'].name} of 8: "
                "save them all as one, or take the upper 8 bits (bits=8)"
            )
        if colour_16 is not None:
            raise ValueError(
                f"{colour_16.name}: 16 bits are read of one channel without transparency: take the upper 8 (bits=8), "
                "or save an array of uint16 as .npy"
            )
        if moving:
            self.notes.append(
                f"the first frame is read of {counted(len(moving), 'image')} with several, as {moving[0]}"
            )
        return self._layout(first[1], kinds)

    def _check_size(self, item: Item, kind: Kind, first: tuple[Item, Kind]) -> None:
        size, decoding = kind[:2], self.decoding
        if decoding.sides is None and size != first[1][:2]:
            sizes = " and ".join(f"{one.name} of {k.width}x{k.height}" for one, k in (first, (item, kind)))
            raise ValueError(
                f"expected images of one size (width x height), got {sizes}: crop or resize them to one "
                "(size=64, --config.data.size=64)"
            )
        height, width = decoding.smallest()
        if kind.height < height or kind.width < width:
            raise ValueError(
                f"{item.name}: expected at least {width}x{height} pixels to crop, got {kind.width}x{kind.height}: "
                "crop less, resize (fit='resize_crop'), or remove it"
            )

    def _layout(self, kind: Kind, kinds: dict[str, Item]) -> Layout:
        mode: str | None = "RGB" if "colour" in kinds else "L"
        if self.decoding.channels:
            mode = "L" if self.decoding.channels == 1 else "RGB"
        if self.decoding.alpha == "keep":
            mode = "RGBA"
        if "16-bit" in kinds:
            mode = None
        height, width = self.decoding.sides or (kind.height, kind.width)
        return Layout(mode, ({"RGB": 3, "RGBA": 4}.get(mode or "L", 1), height, width))


def sizes_of(items: Sequence[Item], exif: bool) -> set[tuple[int, int]]:
    """The (width, height) of the images that can be read, by their heads, after the camera's rotation with `exif`."""
    kinds = (_try(item, partial(_kind, item, exif)) for item in items)
    return {kind[:2] for kind in kinds if not isinstance(kind, DamagedImageError)}


def content_of(item: Item) -> bytes:
    """All bytes of a file.

    Raises:
        ValueError: if it is larger than an image can be.
        Exception: anything, if it is damaged.
    """
    content = bytearray()
    with item.open() as file:
        for piece in iter(partial(file.read, PIECE), b""):
            content += piece
            if len(content) > LARGEST:
                raise ValueError(f"more than {LARGEST >> 20} MiB, which no image has")
    return bytes(content)


def _kind(item: Item, exif: bool) -> Kind:
    with item.open() as file:
        return kind_of(file, exif)


def _try(item: Item, read: Callable[[], T]) -> T | DamagedImageError:
    """What `read` returns, or the error that names the item: the readers of Pillow and of archives raise anything."""
    try:
        return read()
    except Exception as error:
        text = str(error).replace(repr(error), "").split(" <")[0]  # Pillow shows the object that it reads from
        reason = " ".join(text.split()) or type(error).__name__
        damaged = DamagedImageError(
            f"{item.name}: not an image that can be read ({reason}): repair or remove it, or skip such ones "
            "(corrupt=skip)"
        )
        damaged.__cause__ = error
        return damaged
