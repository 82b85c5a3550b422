"""NumPy files of any shape: vectors, series, images, volumes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split, hold_out
from scorefield.training.data.files import npz
from scorefield.training.data.files.keys import Head, Keys, keys_of
from scorefield.training.data.files.lazy_rows import LazyRows
from scorefield.training.data.files.names import held_out_name, split_of
from scorefield.training.data.files.npz import heads, load
from scorefield.training.data.files.paths import nonempty_path
from scorefield.training.data.layout import note, shape_error
from scorefield.training.data.units import as_float32, check_float32

LEVELS = {"bool": 2, "uint8": 256, "uint16": 65536}
Read = Callable[[str], NDArray[Any]]


def array(
    path: str | os.PathLike[str],
    split: Split = "train",
    levels: int | None = 0,
    *,
    key: str = "",
    label_key: str = "",
    shape: Sequence[int] = (),
    dtype: str = "uint8",
    conditions: bool = True,
) -> Dataset:
    """The array (N, *D) of an .npy file, of an .npz file with its labels, or of raw bytes, unchanged.

    The arrays of an .npz are known by their names. Data is `x`, `images`, `data` or `features`, labels are `label`, `y`
    or `target`, and a word says the split: `x_train`, `test_images`, `val_labels`. So are `x_train.npy` and the files
    beside it. Without a test or validation split, every tenth item is the test split. Labels (N,) or (N, 1) are numbers
    of classes, or words, which are numbered in alphabetical order. `caption` (N,), text; `boxes` (N, K, 5) and `map`
    (N, h, w) are conditions, see `Dataset.cond`. Images must be channel-first, (N, C, H, W):
    axes are never guessed or moved. An array above 256 MiB is mapped and its rows are read on demand, unless it is
    compressed (`numpy.savez_compressed`).

    Args:
        path: the file.
        split: "train" or "test".
        levels: the number of values of an entry; 0 is 256 for uint8, 65536 for uint16, 2 for bool, and None,
            continuous, for floats.
        key: the name of the data in an .npz, where several may be.
        label_key: the name of the labels, or "none".
        shape: of one item, *D, for a file of raw numbers, as `numpy.memmap` and `tofile` write.
        dtype: of raw numbers.
        conditions: whether to read captions, boxes and maps.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, several arrays may be the data or the labels, it holds Python objects, or is
            not a `Dataset`.
    """
    check_split(split)
    path = nonempty_path(path)
    if shape:
        keys, raw = Keys({"train": "x"}, {}, {}, ""), _raw(path, tuple(shape), dtype)
        return _dataset(path, split, levels, keys, lambda _: raw)
    heads, read = _opened(path)
    several = len(heads) > 1 and path.suffix.lower() == ".npy"
    return _dataset(path, split, levels, keys_of(path, heads, key or path.stem * several, label_key, conditions), read)


def _dataset(path: Path, split: Split, levels: int | None, keys: Keys, read: Read) -> Dataset:
    if "train" not in keys.x:
        got = ", ".join(keys.x.values())
        raise ValueError(f"{path}: expected data to train on, got only {got}: name it x, or choose it (key=...)")
    test = held_out_name(keys.x)
    side = test if split == "test" and test else "train"
    labelled = [each for each in ("train", test) if each in keys.label]
    labels, num_classes, names = _numbered([read(keys.label[each]) for each in labelled])
    label = dict(zip(labelled, labels, strict=True)).get(side)
    x = read(keys.x[side])
    stored, levels = in_type(path, x, levels or None)
    facts: dict[str, Any] = {"num_classes": num_classes, "class_names": names} if label is not None else {}
    facts["notes"] = (*([keys.note] if keys.note else []), *note(stored.shape[1:], levels))
    cond = {each: _condition(each, read(name)) for each, name in keys.cond.get(side, {}).items()}
    dataset = Dataset(path.stem, split, stored, levels, label, cond=cond, **facts)
    if test:
        return dataset
    index = hold_out(len(dataset), split)
    part = LazyRows.of(x, index, stored.dtype) if x.nbytes > npz.IN_MEMORY else stored[index]
    facts["cond"] = {each: rows[index] for each, rows in cond.items()}
    return Dataset(path.stem, split, part, levels, None if label is None else label[index], **facts)


def _condition(key: str, rows: NDArray[Any]) -> NDArray[Any]:
    """The rows of a condition; boxes in float32. `Dataset` refuses what does not fit."""
    return rows.astype(np.float32) if key == "boxes" and rows.dtype.kind in "iuf" else rows


def _numbered(labels: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], int, tuple[str, ...]]:
    """Labels (N,) or (N, 1) as (N,) in int64, the number of classes, and their names if they are words."""
    flat = [label.reshape(-1) if label.ndim == 2 and label.shape[1] == 1 else label for label in labels]
    if flat and all(label.dtype.kind == "U" for label in flat):
        names = np.unique(np.concatenate([label.reshape(-1) for label in flat]))
        return [np.searchsorted(names, label).astype(np.int64) for label in flat], len(names), tuple(names.tolist())
    numbers = [_as_numbers(label) for label in flat]
    return numbers, max((int(a.max(initial=0)) + 1 for a in numbers if a.dtype.kind == "i"), default=0), ()


def _as_numbers(label: NDArray[Any]) -> NDArray[Any]:
    """Numbers of classes in int64, also from floats without fractions. Others stay, and `Dataset` refuses them."""
    integer = label.dtype.kind in "biu" or (label.dtype.kind == "f" and bool((label == np.rint(label)).all()))
    return label.astype(np.int64) if integer else label


def whole_array(
    path: str | os.PathLike[str],
    levels: int | None,
    *,
    shape: tuple[int, ...] | None = None,
    labels: bool = False,
    conditions: bool = False,
) -> Dataset:
    """All items of an .npy or .npz file as one split, with the known number of levels.

    With `labels` it has their classes, with `conditions` their captions, boxes and maps.

    Of a file with several splits, the test or validation split.

    Raises:
        FileNotFoundError, ValueError: as `array`; and if its items have another than the known `shape`.
    """
    path = Path(path).expanduser()
    every = heads(path)
    keys = keys_of(path, every, conditions=conditions)
    split = held_out_name(keys.x) or "train"
    cond = keys.cond.get(split, {})
    arrays = load(path, [*(each[split] for each in (keys.x, keys.label) if split in each), *cond.values()])
    x = arrays[keys.x[split]]
    if shape is not None and x.shape[1:] != shape:
        raise shape_error(path.stem, shape, x.shape[1:])
    x, _ = in_type(path, x, levels, guess=False)
    facts: dict[str, Any] = {"notes": (keys.note,) if keys.note else ()}
    if labels and split in keys.label:
        (label,), count, names = _numbered([arrays[keys.label[split]]])
        facts |= {"label": label, "num_classes": count, "class_names": names}
    facts["cond"] = {each: _condition(each, arrays[name]) for each, name in cond.items()}
    return Dataset(path.stem, "test", x, levels, **facts)


def _opened(path: Path) -> tuple[dict[str, Head], Read]:
    """The headers of the arrays by name, and how one is read: of a file, or of x_train.npy and files beside it."""
    if path.suffix.lower() == ".npy" and split_of(path.stem)[0] and path.is_file():
        files = {file.stem: file for file in sorted(path.parent.glob("*.npy")) if split_of(file.stem)[0]}
        if len(files) > 1:
            return {name: heads(file)["x"] for name, file in files.items()}, lambda name: load(files[name])["x"]
    return heads(path), lambda name: load(path, [name])[name]


def stored_dtype(path: str | os.PathLike[str]) -> np.dtype[Any]:
    """The type of the data that `whole_array` reads, as it is in the file."""
    every = heads(Path(path).expanduser())
    keys = keys_of(Path(path), every)
    return np.dtype(every[keys.x[held_out_name(keys.x) or "train"]].dtype)


def in_type(path: Path, x: NDArray[Any], levels: int | None, guess: bool = True) -> tuple[NDArray[Any], int | None]:
    """An array in float32 if continuous, else in the smallest type for the levels; and the levels.

    What does not fit is left to `Dataset` to refuse. A mapped array stays mapped: floats and booleans are cast when
    they are read, other types never.

    Raises:
        ValueError: if there are levels and the floats have fractions, or there are none and these are integers, or
            floats whose range or digits float32 does not hold.
    """
    if x.dtype.kind == "c":
        raise ValueError(f"{path}: expected real numbers, got {x.dtype}: save real and imaginary parts as two channels")
    if levels is None and guess:
        levels = LEVELS.get(x.dtype.name)
    if levels is None and x.dtype.kind != "f":
        raise ValueError(f"{path}: expected floats, uint8, uint16 or bool, got {x.dtype}: give the number of levels")
    if x.nbytes > npz.IN_MEMORY:
        if levels is not None and x.dtype.kind == "f":
            raise ValueError(
                f"{path}: expected integers for {levels} levels in an array of this size, got {x.dtype}: cast it"
            )
        dtype = np.float32 if levels is None else np.uint8 if x.dtype.kind == "b" else x.dtype.newbyteorder("=")
        if x.ndim < 2 or x.dtype == dtype:
            return x, levels
        check_float32(path, x)
        return LazyRows.of(x, np.arange(len(x)), dtype), levels
    if levels is None:
        return as_float32(path, x), None
    return _smallest_type(path, x, levels), levels


def _smallest_type(path: Path, x: NDArray[Any], levels: int) -> NDArray[Any]:
    if x.size == 0 or x.dtype.kind not in "biuf" or x.min() < 0 or x.max() >= levels:
        return x
    if x.dtype.kind == "f" and (x != np.rint(x)).any():
        raise ValueError(
            f"{path}: expected whole numbers in 0..{levels - 1}, got fractions: scale it, or give no levels"
        )
    return x.astype(np.min_scalar_type(levels - 1))


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
