"""The IDX format, and MNIST and Fashion-MNIST in it, in torchvision's layout of files."""

import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.paths import REPLACE, data_root, read_plain
from scorefield.training.data.sources.download import download as fetch

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SIDE = 28
FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file, plain or gzip, in the machine's byte order.

    The format: two zero bytes, one for the type, one for the number of dimensions; the dimensions as
    big-endian 32-bit integers; the entries, big-endian, last dimension fastest.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not IDX, or longer or shorter than its header says.
    """
    data = read_plain(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path}: expected an IDX header, got {len(data)} bytes from {data[:4].hex()!r}: {REPLACE}")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(TYPES[data[2]])
    size = start + math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise ValueError(f"{path}: expected {size} bytes for {dtype} {shape}, got {len(data)}: {REPLACE}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def mnist(
    root: str | os.PathLike[str] | None = None, split: Split = "train", *, download: bool = False, size: int = SIDE
) -> Dataset:
    """MNIST: 60,000 + 10,000 images (1, 28, 28) of 256 levels in ten classes, from `root`/MNIST/raw.

    Args:
        root: the folder of the data sets; by default DATA_ROOT of the environment, or `data`.
        split: "train" or "test".
        download: first fetch the files that are missing or damaged.
        size: of the side; above 28 the images get a border of zeros, as 32 does for an autoencoder that divides by 8.

    Raises:
        FileNotFoundError: if a file is missing, or could not be downloaded.
        ValueError: if a file has other content, or for a size below 28.
    """
    if download:
        fetch("mnist", root)
    return _read("mnist", data_root(root) / "MNIST" / "raw", split, size)


def fashion_mnist(
    root: str | os.PathLike[str] | None = None, split: Split = "train", *, download: bool = False, size: int = SIDE
) -> Dataset:
    """Fashion-MNIST: sizes, arguments and errors as of `mnist`, from `root`/FashionMNIST/raw."""
    if download:
        fetch("fashion_mnist", root)
    return _read("fashion_mnist", data_root(root) / "FashionMNIST" / "raw", split, size)


def _read(name: str, folder: Path, split: Split, size: int) -> Dataset:
    check_split(split)
    if size < SIDE:
        raise ValueError(f"expected a size of at least {SIDE} for {name}, got {size}: leave it out, or take 32")
    prefix, count = FILES[split]
    x = _read_bytes(folder / f"{prefix}-images-idx3-ubyte", (count, SIDE, SIDE))
    if size > SIDE:
        before = (size - SIDE) // 2
        border = (before, size - SIDE - before)
        x = np.pad(x, ((0, 0), border, border))
    label = _read_bytes(folder / f"{prefix}-labels-idx1-ubyte", (count,))
    return Dataset(name, split, x[:, None], levels=256, label=label.astype(np.int64), num_classes=10)


def _read_bytes(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    array = read_idx(path)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(
            f"{path}: expected {math.prod(shape)} bytes as {shape}, "
            f"got {array.nbytes} as {array.shape} of {array.dtype}: {REPLACE}"
        )
    return array
