"""Shards in WebDataset's format: tars of <key>.jpg or .png with <key>.cls or <key>.json beside it."""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scorefield.training.data.dataset import Dataset, Split, check_split, hold_out
from scorefield.training.data.files.archive import archive_file, archived
from scorefield.training.data.files.decoding import Decoding
from scorefield.training.data.files.images import SUFFIXES, Item, content_of
from scorefield.training.data.files.listing import TESTS, Listing, image_set
from scorefield.training.data.files.paths import given_path

BRACES = re.compile(r"\{([^{}]*)\}")


def shards(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    label: str = "label",
    size: int | Sequence[int] = 0,
    fit: str = "resize_crop",
    resample: str = "bicubic",
    channels: int = 0,
    alpha: str = "drop",
    bits: int = 0,
    corrupt: str = "error",
    cache: str | os.PathLike[str] = "",
) -> Dataset:
    """The images of tar shards, in the order of the shards and of the keys in them.

    `path` names one tar or several: "a-{000..012}.tar", "{a,b}.tar", "a-*.tar", and "{split}-*.tar" where train
    and test (or val, valid, validation) have shards of their own; otherwise every tenth image is the test
    split. A sample's class is the number or the word in its .cls, or `label` of its .json; words are
    numbered in alphabetical order. Either all samples have one or none.

    `label` is the key of the class in a .json. The other arguments are those of `folder`; the decoded images are kept
    beside the first shard by default.

    Raises:
        FileNotFoundError: if no shard is there.
        ValueError: if one is damaged, only some samples have a class, or as `folder`.
    """
    check_split(split)
    decoding = Decoding(size, fit, 0, resample, channels, alpha, bits)
    pattern = str(given_path(path))
    apart = "{split}" in pattern
    train = _matching(pattern.replace("{split}", "train"))
    tests: list[list[Path]] = [_matching(pattern.replace("{split}", name)) for name in TESTS] if apart else [train]
    test = next((found for found in tests if found), [])
    if not (test if split == "test" else train):
        raise FileNotFoundError(f"expected shards of {split} as {path}, found none: give their path")
    files = train + test if apart else train

    def listing() -> Listing:
        samples = [sample for file in files for sample in _samples(file) if sample.image is not None]
        if not samples:
            raise ValueError(f"expected images ({', '.join(SUFFIXES)}) in {files[0]}, found none: choose other shards")
        classes, names = _numbered(samples, label)
        index = list(hold_out(len(samples), split)) if not apart else []
        if apart:
            index = [i for i, sample in enumerate(samples) if sample.shard in (test if split == "test" else train)]
        items = [sample.image for sample in samples if sample.image is not None]
        if classes is None:
            return Listing(items, index)
        return Listing(items, index, [classes[i] for i in index], len(names) or max(classes) + 1, names)

    return image_set(
        files[0].name.split(".")[0], split, listing,
        files=files, beside=files[0].parent, decoding=decoding, corrupt=corrupt, cache=cache,
        settings=[str(path), label],
    )  # fmt: skip


class _Sample(NamedTuple):
    shard: Path
    key: str
    image: Item | None
    files: dict[str, Item]  # by what follows the key


def _samples(shard: Path) -> list[_Sample]:
    """The files of a shard by their keys, which end at the first dot of their names."""
    found: dict[str, dict[str, Item]] = {}
    for path, item in archived(archive_file(shard), every=True).items():
        top, _, name = path.rpartition("/")
        key, _, suffix = name.partition(".")
        if key:
            found.setdefault(f"{top}/{key}" if top else key, {})[suffix.lower()] = item
    suffixes = [suffix.removeprefix(".") for suffix in SUFFIXES]
    images = {
        key: next((files[suffix] for suffix in suffixes if suffix in files), None) for key, files in found.items()
    }
    return [_Sample(shard, key, images[key], files) for key, files in found.items()]


def _numbered(samples: Sequence[_Sample], label: str) -> tuple[list[int] | None, list[str]]:
    """The class of each sample, if they have any, and what the classes are called, unless by numbers."""
    words = [_class(sample, label) for sample in samples]
    if all(word is None for word in words):
        return None, []
    missing = next((sample for sample, word in zip(samples, words, strict=True) if word is None), None)
    if missing is not None:
        raise ValueError(
            f"{missing.shard}: expected a class for every sample or for none, got none for {missing.key}: "
            f"add {missing.key}.cls or {label!r} to its .json"
        )
    if all(str(word).isdecimal() for word in words):
        return [int(str(word)) for word in words], []
    names = {name: i for i, name in enumerate(sorted({str(word) for word in words}))}
    return [names[str(word)] for word in words], list(names)


def _class(sample: _Sample, label: str) -> str | None:
    """What the .cls or else the .json says."""
    suffix = next((suffix for suffix in ("cls", "json") if suffix in sample.files), None)
    if suffix is None:
        return None
    try:
        text = content_of(sample.files[suffix]).decode().strip()
        if suffix == "cls":
            return text
        value = json.loads(text).get(label)
    except Exception as error:  # whatever lies there
        reason = " ".join(str(error).split())
        raise ValueError(f"{sample.files[suffix].name}: not a class that can be read ({reason}): repair it") from error
    return None if value is None else str(value)


def _matching(pattern: str) -> list[Path]:
    """The files of a pattern; of one with braces and nothing else, those that are not there too, unless none is."""
    found = [Path(f) for one in _braces(pattern) for f in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    return [archive_file(file) for file in found] if any(file.is_file() for file in found) else []


def _braces(pattern: str) -> list[str]:
    """{000..012} and {a,b} written out."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    words = match[1].split(",")
    first, dots, last = match[1].partition("..")
    if dots:
        if not (first.isdecimal() and last.isdecimal()):
            raise ValueError(
                f"expected numbers as {{000..012}} in {pattern}, got {match[0]}: give the first and the last"
            )
        words = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return [one for word in words for one in _braces(pattern[: match.start()] + word + pattern[match.end() :])]
