"""Downsampled ImageNet in the files of its home page: batches of 32x32 or 64x64 images, .npz or pickled."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.cache import Content, cached
from scorefield.training.data.files.npz import load
from scorefield.training.data.files.paths import data_root
from scorefield.training.data.files.pickles import load_arrays

CLASSES = 1000
BATCHES = {"train": tuple(f"train_data_batch_{i}" for i in range(1, 11)), "test": ("val_data",)}
ENDINGS = (".npz", "")  # a pickle has none


def imagenet(
    root: str | os.PathLike[str] | None = None,
    split: Split = "train",
    *,
    size: int = 64,
    cache: str | os.PathLike[str] = "",
) -> Dataset:
    """ImageNet at 32x32 or 64x64 (Chrabaszcz et al. 2017): 1,281,167 + 50,000 images (3, size, size), 1000 classes.

    Reads train_data_batch_1 to _10, and val_data as the test split, with the ending .npz or as pickles without one.
    They may lie in `root`/imagenet64 (or ImageNet64, Imagenet64), or in its folders Imagenet64_train_npz,
    Imagenet64_train, Imagenet64_val_npz and Imagenet64_val. Each has `data` (N, 3 size^2), red plane, green, blue, and
    `labels` 1 to 1000, which become 0 to 999. The images are copied once to a file that is mapped; memory has one batch
    at a time. At 32x32 this is the new set of `imagenet32`.

    Args:
        root: the folder of the data sets; by default DATA_ROOT of the environment, or `data`.
        split: "train" or "test".
        size: 32 or 64.
        cache: as in `Decoding`.

    Raises:
        FileNotFoundError: if a batch is missing.
        ValueError: if one has other content.
    """
    check_split(split)
    if size not in (8, 16, 32, 64):
        raise ValueError(f"expected size of 8, 16, 32 or 64, as downsampled ImageNet has, got {size}: choose one")
    files = [_find(data_root(root), size, name) for name in BATCHES[split]]
    label: list[int] = []

    def chunks() -> Iterator[NDArray[Any]]:
        for file in files:
            x, y = _batch(file, size)
            label.extend(y.tolist())
            yield x

    def content() -> Content:
        return Content((3, size, size), np.uint8, chunks(), lambda: {"label": label})

    x, facts = cached(cache, files[0].parent, [split, size], files, content)
    return Dataset(f"imagenet{size}", split, x, 256, np.array(facts["label"], np.int64), CLASSES)


def _find(root: Path, size: int, name: str) -> Path:
    part = name.split("_")[0]
    for top in (f"imagenet{size}", f"ImageNet{size}", f"Imagenet{size}", "."):
        for folder in (".", f"Imagenet{size}_{part}_npz", f"Imagenet{size}_{part}"):
            for ending in ENDINGS:
                path = root / top / folder / f"{name}{ending}"
                if path.is_file() and (top != "." or folder != "."):
                    return path
    raise FileNotFoundError(
        f"expected {root / f'imagenet{size}' / name}.npz, or a pickle of that name without an ending, which is not "
        f"there: fetch Imagenet{size}_{part}_npz.zip from image-net.org and unpack it there, or set DATA_ROOT to the "
        "folder of your data sets"
    )


def _batch(file: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    arrays = load(file) if file.suffix else _unpickled(file)
    x, y = arrays.get("data"), arrays.get("labels")
    if x is None or y is None or x.dtype != np.uint8 or x.shape != (y.size, 3 * size * size):
        got = {name: f"{a.dtype} {a.shape}" for name, a in arrays.items()}
        raise ValueError(
            f"{file}: expected data, uint8 (N, {3 * size * size}), and labels (N,), got {got}: fetch it again"
        )
    if y.dtype.kind not in "iu" or y.min() < 1 or y.max() > CLASSES:
        raise ValueError(f"{file}: expected labels 1 to {CLASSES}, got {y.min()} to {y.max()}: fetch it again")
    return x.reshape(-1, 3, size, size), y.reshape(-1).astype(np.int64) - 1


def _unpickled(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a pickle by name; besides the images and labels it has their mean."""
    try:
        content = load_arrays(file, ("u1", "f8"))
        return {name: np.asarray(value) for name, value in content.items()}
    except Exception as error:  # damaged pickles raise anything
        reason = f"{type(error).__name__}: {error}"[:100]
        raise ValueError(
            f"{file}: expected a pickled batch of images, got {file.stat().st_size} bytes that cannot be read "
            f"({reason}): fetch it again"
        ) from error
