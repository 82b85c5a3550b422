"""NumPy files of any shape: vectors, series, images, volumes."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split, hold_out
from scorefield.training.data.files.lazy_rows import LazyRows
from scorefield.training.data.files.paths import nonempty_path

DATA = ("x", "images")
LABELS = ("label", "labels", "y")
LEVELS = {"bool": 2, "uint8": 256, "uint16": 65536}
IN_MEMORY = 1 << 28  # bytes; a larger array is mapped


def array(
    path: str | os.PathLike[str],
    split: Split = "train",
    levels: int | None = 0,
    *,
    shape: Sequence[int] = (),
    dtype: str = "uint8",
) -> Dataset:
    """The array (N, *D) of an .npy file, of an .npz file with its labels, or of raw bytes, unchanged.

    The keys of an .npz: `x` or `images`, or else the first other one; `label`, `labels` or `y`; and each with `_test`
    appended for a test split. Without one, every tenth item is the test split. Images must be channel-first,
    (N, C, H, W): axes are never guessed or moved. An array above 256 MiB is mapped and its rows are read on demand,
    unless it is compressed (`numpy.savez_compressed`).

    Args:
        path: the file.
        split: "train" or "test".
        levels: the number of values of an entry; 0 is 256 for uint8, 65536 for uint16, 2 for bool, and None,
            continuous, for floats.
        shape: of one item, *D, for a file of raw numbers, as `numpy.memmap` and `tofile` write.
        dtype: of raw numbers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, holds Python objects, or is not a `Dataset`.
    """
    check_split(split)
    path = nonempty_path(path)
    arrays = {"x": _raw(path, tuple(shape), dtype)} if shape else load(path)
    x = _data(path, arrays)
    label, label_test = (_classes(_first(arrays, LABELS, suffix)) for suffix in ("", "_test"))
    classes = [int(a.max()) + 1 for a in (label, label_test) if a is not None and a.size and a.dtype.kind in "iu"]
    x_test = _first(arrays, DATA, "_test")
    if split == "test" and x_test is not None:
        x, label = x_test, label_test
    num_classes = None if label is None else max(classes, default=0)
    stored, levels = in_type(path, x, levels or None)
    dataset = Dataset(path.stem, split, stored, levels, label, num_classes)
    if x_test is not None:
        return dataset
    index = hold_out(len(dataset), split)
    part = LazyRows.of(x, index, stored.dtype) if x.nbytes > IN_MEMORY else stored[index]
    return Dataset(path.stem, split, part, levels, None if label is None else label[index], num_classes)


def whole_array(path: str | os.PathLike[str], levels: int | None, *, labels: bool = False) -> Dataset:
    """All items of an .npy or .npz file as one split, with the known number of levels, and with `labels` its classes.

    Raises:
        FileNotFoundError, ValueError: as `array`.
    """
    path = Path(path).expanduser()
    arrays = load(path)
    x, _ = in_type(path, _data(path, arrays), levels, guess=False)
    label = _classes(_first(arrays, LABELS, "")) if labels else None
    return Dataset(path.stem, "test", x, levels, label, None if label is None else int(label.max(initial=0)) + 1)


def load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name; that of an .npy file is `x`. Large ones are mapped, unless compressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or holds Python objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: give the path of an .npy or .npz file")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"PK"
            file.seek(0)
            if not packed:
                large = path.stat().st_size > IN_MEMORY
                return {"x": _mapped(path, 0) if large else np.load(file, allow_pickle=False)}
            loaded = np.load(file, allow_pickle=False)
            offsets, members = _large(path), set(loaded.zip.namelist())
            names = [name for name in loaded.files if f"{name}.npy" in members]
            return {name: _mapped(path, offsets[name]) if name in offsets else loaded[name] for name in names}
    except (
        ValueError, EOFError, OSError, KeyError, SyntaxError, MemoryError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: expected an .npy or .npz file of numbers, got {path.stat().st_size} bytes that cannot be read "
            f"({reason}): save it again with numpy.save or numpy.savez"
        ) from error


def in_type(path: Path, x: NDArray[Any], levels: int | None, guess: bool = True) -> tuple[NDArray[Any], int | None]:
    """An array in float32 if continuous, else in the smallest type for the levels; and the levels.

    What does not fit is left to `Dataset` to refuse. A mapped array stays mapped: floats and booleans are cast when
    they are read, other types never.

    Raises:
        ValueError: if there are levels and the floats have fractions, or there are none and these are integers.
    """
    if levels is None and guess:
        levels = LEVELS.get(x.dtype.name)
    if levels is None and x.dtype.kind != "f":
        raise ValueError(f"{path}: expected floats, uint8, uint16 or bool, got {x.dtype}: give the number of levels")
    if x.nbytes > IN_MEMORY:
        if levels is not None and x.dtype.kind == "f":
            raise ValueError(
                f"{path}: expected integers for {levels} levels in an array of this size, got {x.dtype}: cast it"
            )
        dtype = np.float32 if levels is None else np.uint8 if x.dtype.kind == "b" else x.dtype.newbyteorder("=")
        if x.ndim < 2 or x.dtype == dtype:
            return x, levels
        return LazyRows.of(x, np.arange(len(x)), dtype), levels
    if levels is None:
        with np.errstate(over="ignore"):
            return x.astype(np.float32), None
    return _smallest_type(path, x, levels), levels


def _smallest_type(path: Path, x: NDArray[Any], levels: int) -> NDArray[Any]:
    if x.size == 0 or x.dtype.kind not in "biuf" or x.min() < 0 or x.max() >= levels:
        return x
    if x.dtype.kind == "f" and (x != np.rint(x)).any():
        raise ValueError(
            f"{path}: expected whole numbers in 0..{levels - 1}, got fractions: scale it, or give no levels"
        )
    return x.astype(np.min_scalar_type(levels - 1))


def _data(path: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    x = _first(arrays, DATA, "")
    if x is None:
        others = (key for key in arrays if key not in LABELS and not key.endswith("_test"))
        x = next((arrays[key] for key in others), None)
    if x is None:
        raise ValueError(f"{path}: expected an array named x, got {', '.join(arrays) or 'no arrays'}: save it as x")
    return x


def _classes(label: NDArray[Any] | None) -> NDArray[Any] | None:
    """Class numbers (N,) in int64, from (N, 1) and whole floats too; `Dataset` refuses what is left as it is."""
    if label is None:
        return None
    flat = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    whole = flat.dtype.kind in "biu" or (flat.dtype.kind == "f" and bool((flat == np.rint(flat)).all()))
    return flat.astype(np.int64) if whole else label


def _first(arrays: dict[str, NDArray[Any]], names: tuple[str, ...], suffix: str) -> NDArray[Any] | None:
    return next((arrays[name + suffix] for name in names if name + suffix in arrays), None)


def _raw(path: Path, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A file of numbers without a header, mapped: (N, *shape), where N follows from its size."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: give the path of a file of {dtype}")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise ValueError(
            f"expected dtype to be a NumPy type such as uint8 or float32, got {dtype!r}: choose one"
        ) from None
    size, each = path.stat().st_size, int(np.prod(shape)) * kind.itemsize
    if kind.kind not in "biuf" or each < 1 or size == 0 or size % each:
        raise ValueError(
            f"{path}: expected items of {each} bytes, {shape} of {dtype}, got {size} bytes: give their shape and dtype"
        )
    return np.asarray(np.memmap(path, kind, "r", shape=(size // each, *shape)))


def _large(path: Path) -> dict[str, int]:
    """The offsets of the large arrays of an .npz that are not compressed, by name."""
    offsets = {}
    with zipfile.ZipFile(path) as packed, path.open("rb") as file:
        for member in packed.infolist():
            if member.compress_type == zipfile.ZIP_STORED and member.file_size > IN_MEMORY:
                file.seek(member.header_offset + 26)  # the lengths of the name and of the extra field
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                offsets[member.filename.removesuffix(".npy")] = member.header_offset + 30 + name + extra
    return offsets


def _mapped(path: Path, offset: int) -> NDArray[Any]:
    """The array in .npy format that begins at the offset, mapped."""
    with path.open("rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
        mapped: NDArray[Any] = np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
        return np.asarray(mapped)
