"""NumPy files of any shape: vectors, series, images, volumes."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Split, check_split, hold_out
from training.data.files import given_path

DATA = ("x", "images")
LABELS = ("label", "labels", "y")
LEVELS = {"bool": 2, "uint8": 256, "uint16": 65536}


def array(path: str | os.PathLike[str], split: Split = "train", levels: int | None = None) -> Dataset:
    """The array (N, *D) of an .npy file, or of an .npz file with its labels, taken as it is.

    The keys of an .npz: `x` or `images` or else the first that is nothing else; `label`, `labels` or
    `y`; and each with `_test` behind it for a test split. Without one every tenth item is held out.
    Images have to be channel-first, (N, C, H, W): axes are never guessed or moved.

    Args:
        path: the file.
        split: "train" or "test".
        levels: how many values an entry can take; by default 256 for uint8, 65536 for uint16, 2 for
            bool, and None, continuous, for floats.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it cannot be read, holds Python objects, or is not a `Dataset`.
    """
    check_split(split)
    path = given_path(path)
    arrays = _load(path)
    x = _data(path, arrays)
    label, label_test = _first(arrays, LABELS, ""), _first(arrays, LABELS, "_test")
    classes = [int(a.max()) + 1 for a in (label, label_test) if a is not None and a.size and a.dtype.kind in "iu"]
    x_test = _first(arrays, DATA, "_test")
    if split == "test" and x_test is not None:
        x, label = x_test, label_test
    if label is not None and label.dtype.kind in "iu":
        label = label.astype(np.int64)
    if levels is None:
        levels = LEVELS.get(x.dtype.name)
    num_classes = None if label is None else max(classes, default=0)
    whole = Dataset(path.stem, split, _cast(path, x, levels), levels, label, num_classes)
    if x_test is not None:
        return whole
    index = hold_out(len(whole), split)
    return Dataset(path.stem, split, whole.x[index], levels, None if label is None else label[index], num_classes)


def whole_array(path: str | os.PathLike[str], levels: int | None) -> Dataset:
    """All items of an .npy or .npz file as one split, without labels, of the levels they are known to have.

    Raises:
        FileNotFoundError, ValueError: as `array`.
    """
    path = Path(path).expanduser()
    return Dataset(path.stem, "test", _cast(path, _data(path, _load(path)), levels), levels)


def _data(path: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    x = _first(arrays, DATA, "")
    if x is None:
        others = (key for key in arrays if key not in LABELS and not key.endswith("_test"))
        x = next((arrays[key] for key in others), None)
    if x is None:
        raise ValueError(f"{path}: expected an array named x, got {', '.join(arrays) or 'no arrays'}: save it as x")
    return x


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the file by name; the one of an .npy file is `x`."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: give the path of an .npy or .npz file")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, OSError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: expected an .npy or .npz file of numbers, got {path.stat().st_size} bytes that cannot be read "
            f"({reason}): save it again with numpy.save or numpy.savez"
        ) from error


def _first(arrays: dict[str, NDArray[Any]], names: tuple[str, ...], suffix: str) -> NDArray[Any] | None:
    return next((arrays[name + suffix] for name in names if name + suffix in arrays), None)


def _cast(path: Path, x: NDArray[Any], levels: int | None) -> NDArray[Any]:
    """In float32 if continuous, else in the smallest type that holds the levels; `Dataset` judges what does not fit."""
    if levels is None:
        if x.dtype.kind != "f":
            raise ValueError(
                f"{path}: expected floats, uint8, uint16 or bool, got {x.dtype}: give the number of levels"
            )
        with np.errstate(over="ignore"):
            return x.astype(np.float32)
    if x.size == 0 or x.dtype.kind not in "biuf" or x.min() < 0 or x.max() >= levels:
        return x
    if x.dtype.kind == "f" and (x != np.rint(x)).any():
        raise ValueError(
            f"{path}: expected whole numbers in 0..{levels - 1}, got fractions: scale it, or give no levels"
        )
    return x.astype(np.min_scalar_type(levels - 1))
