"""A folder of image files as a data set."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.dataset import Dataset, Split, check_split, hold_out
from training.data.files import given_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GREY = {"1", "L", "LA"}
DEEP = {"I;16", "I;16B", "I;16L", "I"}  # what Pillow, old and new, calls 16-bit greyscale
SPLITS = ("train", "test")


def folder(path: str | os.PathLike[str], split: Split = "train") -> Dataset:
    """All images under a folder, in order of their path: x (N, C, H, W), of one size.

    `path`/train and `path`/test are the splits when both are there; otherwise every tenth image is the
    test split. When all images of a split lie in sub-folders, those (below train and test) are its
    classes, numbered by name over both splits. C is 1 when every image is greyscale, else 3; transparency
    is dropped and a camera's rotation flag is not applied. 256 levels; 65536 for 16-bit greyscale.

    Raises:
        FileNotFoundError: if the folder is not there.
        ValueError: if it has no images, they differ in size or in bits, or one cannot be read.
    """
    check_split(split)
    root = given_path(path)
    files = image_files(root)
    both = all((root / name).is_dir() for name in SPLITS)
    if both:
        files = [file for file in files if file.relative_to(root).parts[0] in SPLITS]
    parts = [file.relative_to(root).parts[:-1] for file in files]
    if both:
        index = np.array([i for i, part in enumerate(parts) if part[:1] == (split,)], np.int64)
        if not len(index):
            raise ValueError(f"expected images in {root / split}, found none: put some there, or remove the folder")
    else:
        index = hold_out(len(files), split)
    below = [part[1:] if part and part[0] in SPLITS else part for part in parts]
    classes = sorted({part[0] for part in below if part})
    labelled = all(below[i] for i in index)
    x, levels = read_images(files, index)
    label = np.array([classes.index(below[i][0]) for i in index], np.int64) if labelled else None
    return Dataset(root.resolve().name, split, x, levels, label, len(classes) if labelled else None)


def image_files(root: Path) -> list[Path]:
    """The image files under a folder, at any depth, in order of their path; what is hidden is left out.

    Raises:
        FileNotFoundError: if the folder is not there.
        ValueError: if there are none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder {root}, which is not there: give the path of a folder of images")
    found = sorted(file.relative_to(root) for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
    files = [root / file for file in found if not any(part.startswith(".") for part in file.parts)]
    if not files:
        raise ValueError(f"expected images ({', '.join(SUFFIXES)}) in {root}, found none: put some there")
    return files


def read_images(
    files: Sequence[Path], index: Sequence[int] | NDArray[np.int64] | None = None
) -> tuple[NDArray[Any], int]:
    """The images (N, C, H, W) of those files, or of the ones at `index`, and their levels.

    Size, channels and depth are judged over all of them, so that two splits of one list agree.

    Raises:
        ValueError: if they differ in size or in bits, or one cannot be read.
    """
    first = None
    modes: dict[str, Path] = {}  # each kind of image seen, and the first of it
    for file in files:
        with _open(file) as image:
            size, mode = image.size, image.mode
        first = first or (file, size)
        if size != first[1]:
            sizes = " and ".join(f"{name} of {w}x{h}" for name, (w, h) in (first, (file, size)))
            raise ValueError(f"expected images of one size (width x height), got {sizes}: crop or resize them to one")
        modes.setdefault("16-bit" if mode in DEEP else "8-bit", file)
        modes.setdefault("grey" if mode in GREY | DEEP else "colour", file)
    if "16-bit" in modes and "8-bit" in modes:
        raise ValueError(
            f"expected images of one depth, got {modes['16-bit']} of 16 bits and {modes['8-bit']} of 8: "
            "save them all as one"
        )
    target = None if "16-bit" in modes else "RGB" if "colour" in modes else "L"
    chosen = list(files) if index is None else [files[i] for i in index]
    width, height = first[1] if first else (0, 0)
    x = np.empty((len(chosen), 3 if target == "RGB" else 1, height, width), np.uint16 if target is None else np.uint8)
    for i, file in enumerate(chosen):
        x[i] = _pixels(file, target)
    return x, 65536 if target is None else 256


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except Exception as error:  # Pillow's readers raise anything for a damaged file
        raise _damaged(file, error) from error


def _pixels(file: Path, mode: str | None) -> NDArray[Any]:
    """One image (C, H, W), converted to a mode of Pillow; None leaves 16-bit greyscale as it is."""
    with _open(file) as image:
        try:
            pixels = np.asarray(image, np.uint16) if mode is None else np.asarray(image.convert(mode), np.uint8)
        except Exception as error:
            raise _damaged(file, error) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{file}: not an image that can be read ({reason}): repair it or remove it")
