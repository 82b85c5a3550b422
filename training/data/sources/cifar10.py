"""CIFAR-10, from either of its two forms: binary records or Python pickles."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.paths import REPLACE, data_root, read_exact
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
        with path.open("rb") as file:
            batch = _BytesUnpickler(file, encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        x = batch["data"].array
        label = np.array(batch["labels"], np.int64)
        if x.shape != (COUNT, SIZE) or label.shape != (COUNT,):
            raise ValueError(f"expected {COUNT * SIZE} bytes as {(COUNT, SIZE)}, got {x.size} as {x.shape}")
    except Exception as error:  # damaged pickles raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path}: not a batch of CIFAR-10 ({reason}), {path.stat().st_size} bytes: {REPLACE}"
        ) from error
    return x, label


class _BytesUnpickler(pickle.Unpickler):
    """Loads plain values and arrays of bytes, and refuses every other name that a pickle asks for.

    NumPy's constructors are never called: stand-ins keep the bytes of arrays.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # NumPy 2 renamed what NumPy 1 wrote
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): _ByteType,
            ("numpy", "ndarray"): _Array,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}, not needed for an array of bytes")
        return allowed[module, name]


class _ByteType:
    """Stands in for a dtype, which has to be uint8."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"refused: an array of {code!r}, where bytes are expected")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Array:
    """Stands in for an array: `array` is made of the bytes, the shape and the order of the pickled state."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _ByteType, bool, bytes]) -> None:
        _, shape, _, fortran, data = state
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    """How protocols up to 4 start an array; its state follows."""
    return _Array()


def _from_buffer(data: bytes, dtype: _ByteType, shape: tuple[int, ...], order: str) -> _Array:
    """How protocol 5 writes an array."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _encode(text: str, _: str) -> bytes:
    """How Python 3 writes bytes in protocols up to 2: as Latin-1."""
    return text.encode("latin1")
