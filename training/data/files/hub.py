"""Data sets of Hugging Face's `datasets`, in a folder or on the hub."""

import importlib
import os
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, check_split, hold_out
from scorefield.training.data.files.array import in_type
from scorefield.training.data.files.captions import one_line
from scorefield.training.data.files.decoding import Decoding, image_reader
from scorefield.training.data.files.images import Item
from scorefield.training.data.files.keys import keyword
from scorefield.training.data.files.listing import Listing, image_set
from scorefield.training.data.files.names import counted, described_splits, is_label, members, splits_of
from scorefield.training.data.files.paths import nonempty_path
from scorefield.training.data.layout import note


@image_reader
def huggingface(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    configuration: str = "",
    column: str = "",
    label: str = "",
    caption: str = "",
    levels: int = 0,
    decoding: Decoding,
) -> Dataset:
    """A data set of the package `datasets` (pip install 'scorefield[datasets]').

    The test split is "test" or else "validation", in any usual form; without either, every tenth item of "train".

    Args:
        path: a folder that its `save_to_disk` wrote, a folder of parquet or arrow files, or a name on the hub, as
            "uoft-cs/cifar10".
        split: "train" or "test".
        configuration: its name, for a set that has several.
        column: of the images or of arrays of numbers; by default the only one of images, or else of lists.
        label: the column of the classes, "none" for no classes; by default "label", or the only one of classes.
        caption: the column of text, "none" for no captions; by default the only one named caption, text or prompt.
        levels: of arrays of numbers, as in `array`.
        decoding: of images, as in `folder`; by default the cache lies beside the set's files.

    Raises:
        FileNotFoundError: if there is no such set.
        ValueError: if the package is not installed, the set has no such column or several, or as `folder` and `array`.
    """
    check_split(split)
    name = str(nonempty_path(path))
    parts = _loaded(name, configuration)
    names_of = splits_of(parts, name) or {next(iter(parts)) if len(parts) == 1 else "train": "train"}
    test = next(iter(members(names_of, "test")), None)
    chosen = next(iter(members(names_of, "train"))) if split == "train" or test is None else test
    if chosen not in parts:
        raise ValueError(f"{path}: expected a split named train, got {', '.join(parts)}: choose another set")
    table = parts[chosen]
    index = np.arange(len(table)) if test is not None else hold_out(len(table), split)
    for wanted in (column, *("" if each == "none" else each for each in (label, caption))):
        if wanted and wanted not in table.column_names:
            raise ValueError(f"{path}: expected a column {wanted!r}, got {', '.join(table.column_names)}: choose one")
    column = column or _column(table, name)
    label = label or _label(table, name)
    notes = [described_splits(names_of)] if test is not None else []
    texts, said = _captions(table, caption or _caption(table, name))
    notes += said
    classes, count, names = _classes(parts, chosen, label)
    title = Path(name).name
    if type(table.features[column]).__name__ != "Image":
        x, known = in_type(Path(name), np.asarray(table.with_format("numpy")[column][:]), levels or None)
        own = None if classes is None else classes[index]
        lines = (*notes, *note(x.shape[1:], known))
        cond = {} if texts is None else {"caption": np.array(texts, np.str_)[index]}
        return Dataset(title, split, x[index], known, own, count, class_names=tuple(names), notes=lines, cond=cond)
    files = [Path(file["filename"]) for file in table.cache_files]
    beside = Path(name) if Path(name).is_dir() else files[0].parent if files else Path()
    raw = table.cast_column(column, _package().Image(decode=False))

    def listing() -> Listing:
        words = [None] * len(raw) if texts is None else texts
        items = [Item(f"{name}[{chosen}][{i}]", partial(_open, raw, column, i), text) for i, text in enumerate(words)]
        return Listing(items, index, None if classes is None else classes[index], count, names)

    local = str(Path(name).absolute()) if Path(name).exists() else name
    settings = [local, configuration, column, label, chosen, table.num_rows, *([] if texts is None else ["captions"])]
    decoding = decoding if files else replace(decoding, cache="off")
    return image_set(
        title, split, listing, files=files, beside=beside, decoding=decoding, settings=settings, notes=notes
    )


def _package() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            "expected the package datasets, which is not installed: pip install 'scorefield[datasets]'"
        ) from None


def _loaded(path: str, configuration: str) -> Any:
    """The splits of a set by name."""
    package = _package()
    try:
        if (Path(path) / "dataset_dict.json").is_file() or (Path(path) / "state.json").is_file():
            loaded = package.load_from_disk(path)
        else:
            loaded = package.load_dataset(path, configuration or None)
    except Exception as error:  # the package, its readers and the network raise anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise FileNotFoundError(
            f"{path}: not a set that datasets can load ({reason}): give a folder or a name on the hub"
        ) from error
    return loaded if hasattr(loaded, "keys") else {"train": loaded}


def _column(table: Any, path: str) -> str:
    """The only column of images, or else of lists."""
    kinds = {name: type(feature).__name__ for name, feature in table.features.items()}
    for wanted in (("Image",), ("List", "LargeList", "Sequence", "Array2D", "Array3D", "Array4D", "Array5D")):
        columns = [str(column) for column, kind in kinds.items() if kind in wanted]
        if len(columns) > 1:
            raise ValueError(f"{path}: expected one column of data, got {', '.join(columns)}: choose one (column=NAME)")
        if columns:
            return columns[0]
    raise ValueError(f"{path}: expected a column of images or of lists of numbers, got {kinds}: give one (column=...)")


def _label(table: Any, path: str) -> str:
    """The column "label", or else the only column of classes, or "" for none."""
    plain = [name for name, feature in table.features.items() if type(feature).__name__ in ("ClassLabel", "Value")]
    columns = [name for name in plain if type(table.features[name]).__name__ == "ClassLabel"]
    columns = columns or [name for name in plain if is_label(name) and "float" not in str(table.features[name].dtype)]
    if "label" in plain or len(columns) < 2:
        return "label" if "label" in plain else "".join(columns)
    raise ValueError(
        f"{path}: expected one column of classes, got {', '.join(columns)}: choose one (label=NAME), or none "
        "(label=none)"
    )


def _classes(parts: Any, chosen: str, label: str) -> tuple[NDArray[np.int64] | None, int | None, list[str]]:
    """The class of each item, the number of classes over all splits, and their names, if they have any."""
    if label in ("", "none"):
        return None, None, []
    values = {part: table.with_format(None)[label][:] for part, table in parts.items() if label in table.column_names}
    if any(value is None for value in values[chosen]):
        raise ValueError(f"expected a class for every item in column {label!r}, got none for some: choose another")
    names = list(getattr(parts[chosen].features[label], "names", None) or [])
    flat = {value for column in values.values() for value in column if value is not None}
    if all(isinstance(value, int) for value in flat):
        return np.array(values[chosen], np.int64), len(names) or int(max(flat)) + 1, names
    order = {value: i for i, value in enumerate(sorted(map(str, flat)))}
    return np.array([order[str(value)] for value in values[chosen]], np.int64), len(order), list(order)


def _caption(table: Any, path: str) -> str:
    """The only column of text that is named so, or "none"."""
    columns = [name for name in table.column_names if keyword(name) == "caption" and _is_text(table.features[name])]
    if len(columns) > 1:
        raise ValueError(
            f"{path}: expected one column of captions, got {', '.join(columns)}: choose one (caption=NAME), or none "
            "(caption=none)"
        )
    return columns[0] if columns else "none"


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _captions(table: Any, column: str) -> tuple[list[str] | None, list[str]]:
    """The caption of each item, "" where it has none, and lines that say so; None without captions."""
    if column == "none":
        return None, []
    if not _is_text(table.features[column]):
        raise ValueError(f"expected text in column {column!r}, got {table.features[column]}: choose another (caption=)")
    texts = [one_line(text or "") for text in table.with_format(None)[column][:]]
    empty = texts.count("")
    lines = [f"captions of column {column}"]
    return texts, lines + ([f"{counted(empty, 'item')} without a caption, read as empty"] if empty else [])


def _open(table: Any, column: str, row: int) -> Any:
    cell = table[row][column]
    return BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"]).open("rb")
