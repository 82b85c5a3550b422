"""Which arrays of a file are the data, the labels and the conditions of a split, by the names that people give them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scorefield.training.data.files.names import DATA, LABELS, few, held_out_name, is_label, split_of, words_of

# Words for what a denoiser may be conditioned on, by its keyword in a data set.
CONDITIONS = {
    "caption": {"caption", "captions", "text", "texts", "prompt", "prompts"},
    "boxes": {"boxes"},
    "map": {"map", "maps"},
}


class Head(NamedTuple):
    """What an array's header says."""

    shape: tuple[int, ...]
    dtype: str


class Keys(NamedTuple):
    """The names of the arrays of each split, "train", "test" or "val", and a line that says which they are.

    Conditions are by split and keyword.
    """

    x: dict[str, str]
    label: dict[str, str]
    cond: dict[str, dict[str, str]]
    note: str


def keys_of(path: Path, heads: Mapping[str, Head], key: str = "", label_key: str = "", conditions: bool = True) -> Keys:
    """The arrays of a file that are the data, its labels and its conditions.

    Names say the split by a word for it, and the rest of them is one for the data (`x`, `images`, `data`, `features`)
    or for the labels (`y`, `labels`, `targets`). If no array is called so, the only other one that has items is data.
    `caption`, `boxes` and `map` are conditions if they have a row for each item.

    Args:
        path: of the file, for messages.
        heads: of its arrays, by name.
        key: the name of the data. Other splits have the same name with their word; one for testing is taken alone.
        label_key: the name of the labels, or "none".
        conditions: whether captions, boxes and maps are wanted.

    Raises:
        ValueError: if there are none, or several to choose from; or if captions are Python objects.
    """
    for wanted in (key, "" if label_key == "none" else label_key):
        if wanted and wanted not in heads:
            raise ValueError(f"{path}: expected an array {wanted!r}, got {_shown(heads)}: choose one")
    labelled = [name for name in heads if words_of(name) & LABELS]
    data = [name for name in heads if name not in labelled and _is_data(name)]
    if not data:
        plain = [name for name in heads if name not in labelled]
        others = [name for name in plain if not keyword(name)] or plain
        data = [name for name in others if len(heads[name].shape) > 1] or others
    x = _family(path, heads, data, key, "data")
    if not x:
        raise ValueError(f"{path}: expected an array named x, got {_shown(heads)}: save it as x")
    strict = [name for name in labelled if is_label(name) and name != key]
    lengths = {heads[name].shape[:1] for name in x.values()}
    loose = [name for name in labelled if heads[name].shape[:1] in lengths and heads[name].dtype[0] in "biu"]
    label = {} if label_key == "none" else _family(path, heads, strict or loose, label_key, "labels")
    own = split_of(key)[0]
    if own in ("test", "val"):
        x = {"train": key}
        label = {"train": label[own]} if own in label else {}
    if label_key not in ("", "none"):
        label["train"] = label_key
    label = {split: name for split, name in label.items() if split in x and name not in x.values()}
    cond = _conditions(path, heads, x) if conditions else {}
    return Keys(x, label, cond, _note(heads, x, label, cond))


def keyword(name: str) -> str:
    """The keyword of the condition that an array's name says, or ""."""
    return next((key for key, words in CONDITIONS.items() if words_of(name) and words_of(name) <= words), "")


def _conditions(path: Path, heads: Mapping[str, Head], x: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The arrays of the conditions by split and keyword: those with as many rows as the data."""
    found: dict[str, dict[str, str]] = {}
    for name, head in heads.items():
        key, split = keyword(name), split_of(name)[0] or "train"
        if not key or name in x.values() or split not in x or head.shape[:1] != heads[x[split]].shape[:1]:
            continue
        if head.dtype == "object":
            raise ValueError(
                f"{path}: expected {name!r} as text of NumPy's str, got Python objects: save it as dtype=str"
            )
        found.setdefault(split, {}).setdefault(key, name)
    return found


def _note(
    heads: Mapping[str, Head], x: Mapping[str, str], label: Mapping[str, str], cond: Mapping[str, dict[str, str]]
) -> str:
    """A line that says what is read of several arrays."""
    test = held_out_name(x)
    read = {
        split: [*(each[split] for each in (x, label) if split in each), *cond.get(split, {}).values()]
        for split in ("train", test)
    }
    unused = [name for name in heads if name not in read["train"] and name not in read[test]]
    parts = [f"training on {_joined(read['train'])}"] if read["train"] else []
    parts += [f"testing on {_joined(read[test])}"] if test else []
    parts += [f"{few(unused)} not used"] if unused else []
    return ", ".join(parts) if len(heads) > 1 else ""


def _joined(names: list[str]) -> str:
    """Names as "x", "x with y", "x with y and caption"."""
    return " with ".join([names[0], " and ".join(names[1:])]) if len(names) > 1 else "".join(names)


def _is_data(name: str) -> bool:
    words = words_of(name)
    return words <= DATA and bool(words or split_of(name)[0])


def _family(path: Path, heads: Mapping[str, Head], names: list[str], chosen: str, what: str) -> dict[str, str]:
    """The names of `what` by split, which may differ in the split alone; those of the family of `chosen`."""
    families: dict[str, dict[str, list[str]]] = {}
    for name in heads if chosen else names:
        kind, rest = split_of(name)
        families.setdefault(_stem(rest), {}).setdefault(kind or "train", []).append(name)
    if chosen:
        kind, rest = split_of(chosen)
        families = {"": {**families[_stem(rest)], kind or "train": [chosen]}}
    if len(families) > 1 or any(len(alike) > 1 for family in families.values() for alike in family.values()):
        setting, none = ("key", "") if what == "data" else ("label_key", ", or none (label_key=none)")
        raise ValueError(
            f"{path}: expected one array of {what}, got {_shown({name: heads[name] for name in names})}: choose one "
            f"({setting}=NAME){none}"
        )
    return {kind: alike[0] for family in families.values() for kind, alike in family.items()}


def _stem(rest: str) -> str:
    return re.sub("[^a-z#]", "", rest)


def _shown(heads: Mapping[str, Head]) -> str:
    return few([f"{name} {head.shape}" for name, head in heads.items()], 6) if heads else "no arrays"
