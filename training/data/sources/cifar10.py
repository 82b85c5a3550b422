"""CIFAR-10, from either of its two forms: binary records or Python pickles."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.paths import REPLACE, data_root, read_exact
from scorefield.training.data.files.pickles import load_arrays
from scorefield.training.data.sources.download import download as fetch

BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
COUNT = 10_000  # images in a batch
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 3 * 32 * 32  # bytes of an image: its red plane, then green, then blue


def cifar10(root: str | os.PathLike[str] | None = None, split: Split = "train", *, download: bool = False) -> Dataset:
    """CIFAR-10: 50,000 + 10,000 images (3, 32, 32) of 256 levels in ten classes.

    Reads `root`/cifar-10-batches-bin/*.bin, or `root`/cifar-10-batches-py/* if only these exist.

    Args:
        root: the folder of the data sets; by default DATA_ROOT of the environment, or `data`.
        split: "train" or "test".
        download: first fetch the files of the binary form that are missing or damaged.

    Raises:
        FileNotFoundError: if a file is missing, or could not be downloaded.
        ValueError: if a file has other content, or a pickle asks for more than an array of bytes.
    """
    check_split(split)
    if download:
        fetch("cifar10", root)
    binary, pickled = (data_root(root) / f"cifar-10-batches-{form}" for form in ("bin", "py"))
    names = BATCHES[split]
    if not any((binary / f"{name}.bin").exists() for name in names) and (pickled / names[0]).exists():
        records = [_read_pickle(pickled / name) for name in names]
    else:
        records = [_read_binary(binary / f"{name}.bin") for name in names]
    x, label = (np.concatenate(parts) for parts in zip(*records, strict=True))
    x = x.reshape(-1, 3, 32, 32)
    return Dataset("cifar10", split, x, levels=256, label=label, num_classes=10, class_names=CLASSES)


def _read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (N, 3072) and labels (N,) of records of a label byte and an image."""
    data = np.frombuffer(read_exact(path, COUNT * (1 + SIZE)), np.uint8).reshape(COUNT, 1 + SIZE)
    return data[:, 1:], data[:, 0].astype(np.int64)


def _read_pickle(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (N, 3072) and labels (N,) of a pickled dictionary, whose keys are `str` or, from Python 2, bytes."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: unpack cifar-10-python.tar.gz again")
    try:
        batch = load_arrays(path)
        x = batch["data"]
        label = np.array(batch["labels"], np.int64)
        if x.shape != (COUNT, SIZE) or label.shape != (COUNT,):
            raise ValueError(f"expected {COUNT * SIZE} bytes as {(COUNT, SIZE)}, got {x.size} as {x.shape}")
    except Exception as error:  # damaged pickles raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path}: not a batch of CIFAR-10 ({reason}), {path.stat().st_size} bytes: {REPLACE}"
        ) from error
    return x, label
