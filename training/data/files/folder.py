"""A folder of image files as a data set."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.captions import caption_files, with_captions
from scorefield.training.data.files.decoding import Decoding, image_reader
from scorefield.training.data.files.images import Images, Item
from scorefield.training.data.files.listing import (
    Listing,
    image_set,
    is_hidden,
    is_image,
    left_out,
    no_images,
    split_by_folders,
)
from scorefield.training.data.files.paths import nonempty_path


@image_reader
def folder(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    image: str = "",
    splits: bool = True,
    caption: str = "",
    decoding: Decoding,
) -> Dataset:
    """All images under a folder, in order of their path: x (N, C, H, W), decoded the first time and then mapped.

    Two folders whose names differ only in a word for a split are the splits, in any case: `train` or `training` beside
    `test`, or else `val`, `valid`, `validation`, `dev`, `eval`. Otherwise every tenth image is the test split. When
    images lie in sub-folders, those are the classes, numbered by name over both splits; a few images above them are
    left out. Every format that Pillow reads is read, of several frames the first. There are 256 levels; 65536 for
    16-bit greyscale. Captions are NAME.txt beside NAME.png, or lines {"file_name": ..., "text": ...} of a
    captions.jsonl or metadata.jsonl in a folder. The data set's `notes` say what was taken for a split, and what was
    left out.

    Args:
        path: the folder.
        split: "train" or "test".
        image: which images to read where samples have several: an ending as "jpg", a pattern as "*/images/*", or what
            not to read, as "!*_mask*"; "*" is all.
        splits: False takes folders named as splits for classes.
        caption: "none" leaves captions out.
        decoding: the keywords of `Decoding`: size, fit, crop, resample, channels, alpha, bits, exif, corrupt, cache.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no images, one cannot be read, a sample has several, or they differ in size or depth and
            no keyword says what to do.
    """
    check_split(split)
    root = nonempty_path(path)
    every = _paths(root)
    paths = list(filter(is_image, every))
    files = [root / path for path in paths]
    tops = [place.name for place in root.iterdir() if place.is_dir() and not is_hidden(place.name)]
    texts = caption_files(every, paths, caption)
    notes = left_out(every, set(texts))
    if not files:
        raise no_images(root, notes)

    def listing() -> Listing:
        items, said = with_captions([Item.of(file) for file in files], paths, {t: Item.of(root / t) for t in texts})
        listed = split_by_folders(items, paths, split, str(root), tops, image, splits)
        return replace(listed, notes=[*listed.notes, *said])

    return image_set(
        root.resolve().name,
        split,
        listing,
        files=[*files, *(root / text for text in texts)],
        beside=root,
        decoding=decoding,
        settings=[image, splits, *(["captions"] if texts else [])],
        notes=notes,
    )


def image_files(root: Path) -> list[Path]:
    """The image files under a folder, at any depth, in order of their path, without hidden ones.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if one of the folders cannot be listed.
        ValueError: if it has no images.
    """
    every = _paths(root)
    files = [root / path for path in every if is_image(path)]
    if not files:
        raise no_images(root, left_out(every))
    return files


def _paths(root: Path) -> list[str]:
    """All files under a folder, by their path below it and in its order, without hidden ones."""
    if root.is_file():
        raise ValueError(
            f"expected a folder, got the file {root}: a zip or tar of images is data archive (own.py:archive), an .npy "
            "or .npz is data array (own.py:array)"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder {root}, which is not there: give the path of a folder of images")
    paths: list[str] = []
    visited = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # through a link to a folder above
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not is_hidden(name)]
        below = Path(place).relative_to(root).as_posix()
        paths += [name if below == "." else f"{below}/{name}" for name in names if not is_hidden(name)]
    return sorted(paths, key=lambda path: path.split("/"))


def read_images(files: Sequence[Path], decoding: Decoding | None = None) -> tuple[NDArray[Any], int]:
    """The images (N, C, H, W) of files, and their levels.

    Raises:
        ValueError: if they differ and the decoding does not make them alike, or one cannot be read.
    """
    images = Images([Item.of(file) for file in files], range(len(files)), decoding or Decoding())
    return np.concatenate(list(images.chunks())), images.layout.levels


def _raise(error: OSError) -> None:
    raise error
