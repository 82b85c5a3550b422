"""A folder of image files as a data set."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.decoding import Decoding, image_reader
from scorefield.training.data.files.images import SUFFIXES, Images, Item
from scorefield.training.data.files.listing import image_set, is_image, split_by_folders
from scorefield.training.data.files.paths import nonempty_path


@image_reader
def folder(path: str | os.PathLike[str], split: Split = "train", *, decoding: Decoding) -> Dataset:
    """All images under a folder, in order of their path: x (N, C, H, W), decoded the first time and then mapped.

    `path`/train and `path`/test (or val, valid, validation) are the splits when both exist; otherwise every tenth
    image is the test split. When all images of a split lie in sub-folders, those (below train and test) are its
    classes, numbered by name over both splits. A camera's rotation flag is not applied. There are 256 levels; 65536
    for 16-bit greyscale.

    Args:
        path: the folder.
        split: "train" or "test".
        decoding: the keywords of `Decoding`: size, fit, crop, resample, channels, alpha, bits, corrupt, cache.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no images, one cannot be read, or they differ in size or depth and no keyword says what
            to do.
    """
    check_split(split)
    root = nonempty_path(path)
    files = image_files(root)
    paths = [file.relative_to(root).as_posix() for file in files]
    tops = [place.name for place in root.iterdir() if place.is_dir()]
    return image_set(
        root.resolve().name,
        split,
        lambda: split_by_folders([Item.of(file) for file in files], paths, split, str(root), tops),
        files=files,
        beside=root,
        decoding=decoding,
    )


def image_files(root: Path) -> list[Path]:
    """The image files under a folder, at any depth, in order of their path, without hidden ones.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if one of the folders cannot be listed.
        ValueError: if it has no images.
    """
    if root.is_file():
        raise ValueError(
            f"expected a folder, got the file {root}: a zip or tar of images is data archive (own.py:archive)"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder {root}, which is not there: give the path of a folder of images")
    files: list[Path] = []
    visited = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # through a link to a folder above
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name).relative_to(root) for name in names if is_image(name)]
    if not files:
        raise ValueError(f"expected images ({', '.join(SUFFIXES)}) in {root}, found none: put some there")
    return [root / file for file in sorted(files, key=lambda file: file.parts)]


def read_images(files: Sequence[Path]) -> tuple[NDArray[Any], int]:
    """The images (N, C, H, W) of files that are alike in size and depth, and their levels.

    Raises:
        ValueError: if they differ in size or in bits, or one cannot be read.
    """
    images = Images([Item.of(file) for file in files], range(len(files)), Decoding())
    return np.concatenate(list(images.chunks())), images.layout.levels


def _raise(error: OSError) -> None:
    raise error
