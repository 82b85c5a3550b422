"""A folder of image files as a data set."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.decoding import Decoding
from scorefield.training.data.files.images import SUFFIXES as SUFFIXES
from scorefield.training.data.files.images import Images, Item
from scorefield.training.data.files.listing import arranged, image_set, seen
from scorefield.training.data.files.paths import given_path


def folder(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    size: int | Sequence[int] = 0,
    fit: str = "resize_crop",
    resample: str = "bicubic",
    channels: int = 0,
    alpha: str = "drop",
    bits: int = 0,
    corrupt: str = "error",
    cache: str | os.PathLike[str] = "",
) -> Dataset:
    """All images under a folder, in order of their path: x (N, C, H, W), decoded the first time and then mapped.

    `path`/train and `path`/test (or val, valid, validation) are the splits when both are there; otherwise
    every tenth image is the test split. When all images of a split lie in sub-folders, those (below train
    and test) are its classes, numbered by name over both splits. A camera's rotation flag is not applied.
    256 levels; 65536 for 16-bit greyscale.

    Args:
        path: the folder.
        split: "train" or "test".
        size: the pixels of a side, or (height, width), that images of any size are brought to; 0 for images of one.
        fit: how: "resize_crop", "resize" or "crop", see `Decoding`.
        resample: the filter of resizing.
        channels: 1 or 3; 0 is 1 if every image is greyscale, else 3.
        alpha: "drop" transparency, "keep" it as a fourth channel, or the colour to lay images on.
        bits: 8 for the upper 8 of 16; 0 for all.
        corrupt: "error", or "skip" images that cannot be read: the set's `skipped` names them.
        cache: the folder that keeps the decoded images; by default `path`/.scorefield if that can be written;
            "off" for memory.

    Raises:
        FileNotFoundError: if the folder is not there.
        ValueError: if it has no images, they differ in size or in bits and nothing says what to do, or one
            cannot be read.
    """
    check_split(split)
    decoding = Decoding(size, fit, 0, resample, channels, alpha, bits)
    root = given_path(path)
    files = image_files(root)
    paths = [file.relative_to(root).as_posix() for file in files]
    items = [_item(file) for file in files]
    tops = [place.name for place in root.iterdir() if place.is_dir()]
    return image_set(
        root.resolve().name, split, lambda: arranged(items, paths, split, str(root), tops),
        files=files, beside=root, decoding=decoding, corrupt=corrupt, cache=cache,
    )  # fmt: skip


def image_files(root: Path) -> list[Path]:
    """The image files under a folder, at any depth, in order of their path; what is hidden is left out.

    Raises:
        FileNotFoundError: if the folder is not there.
        OSError: if one of the folders cannot be listed.
        ValueError: if there are none.
    """
    if root.is_file():
        raise ValueError(
            f"expected a folder, got the file {root}: a zip or tar of images is data archive (own.py:archive)"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder {root}, which is not there: give the path of a folder of images")
    found: list[Path] = []
    visited = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=_told):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # by a link that leads back
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name).relative_to(root) for name in names if seen(name)]
    if not found:
        raise ValueError(f"expected images ({', '.join(SUFFIXES)}) in {root}, found none: put some there")
    return [root / file for file in sorted(found, key=lambda file: file.parts)]


def read_images(
    files: Sequence[Path], index: Sequence[int] | NDArray[np.int64] | None = None, decoding: Decoding | None = None
) -> tuple[NDArray[Any], int]:
    """The images (N, C, H, W) of those files, or of the ones at `index`, and their levels.

    Size, channels and depth are judged over all of them, so that two splits of one list agree.

    Raises:
        ValueError: if they differ in size or in bits and the decoding does not make them alike, or one cannot be read.
    """
    images = Images(
        [_item(file) for file in files], range(len(files)) if index is None else index, decoding or Decoding()
    )
    return np.concatenate(list(images.chunks())), images.layout.levels


def _told(error: OSError) -> None:
    raise error


def _item(file: Path) -> Item:
    return Item(str(file), lambda: file.open("rb"))
