"""Shards in WebDataset's format: tars of <key>.jpg or .png with <key>.cls or <key>.json beside it."""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scorefield.training.data.dataset import Dataset, Split, check_split, hold_out
from scorefield.training.data.files.archive import archive_members, existing_archive
from scorefield.training.data.files.decoding import Decoding, image_reader
from scorefield.training.data.files.images import SUFFIXES, Item, content_of
from scorefield.training.data.files.listing import TESTS, Listing, image_set
from scorefield.training.data.files.paths import nonempty_path

BRACES = re.compile(r"\{([^{}]*)\}")


@image_reader
def shards(
    path: str | os.PathLike[str], split: Split = "train", *, label: str = "label", decoding: Decoding
) -> Dataset:
    """The images of tar shards, in the order of the shards and of the keys in them.

    `path` names one tar or several: "a-{000..012}.tar", "{a,b}.tar", "a-*.tar". With "{split}-*.tar" train and test (or
    val, valid, validation) have separate shards; otherwise every tenth image is the test split. A sample's class is the
    number or the word in its .cls, or the entry `label` of its .json; words are numbered in alphabetical order. All
    samples have a class, or none has.

    The other arguments are those of `folder`; by default the cache lies beside the first shard.

    Raises:
        FileNotFoundError: if there are no shards.
        ValueError: if one is damaged, only some samples have a class, or as `folder`.
    """
    check_split(split)
    pattern = str(nonempty_path(path))
    separate = "{split}" in pattern
    train = _matching(pattern.replace("{split}", "train"))
    tests: list[list[Path]] = [_matching(pattern.replace("{split}", name)) for name in TESTS] if separate else [train]
    test = next((files for files in tests if files), [])
    if not (test if split == "test" else train):
        raise FileNotFoundError(f"expected shards of {split} as {path}, found none: give their path")
    files = train + test if separate else train

    def listing() -> Listing:
        samples = [sample for file in files for sample in _samples(file) if sample.image is not None]
        if not samples:
            raise ValueError(f"expected images ({', '.join(SUFFIXES)}) in {files[0]}, found none: choose other shards")
        classes, names = _numbered(samples, label)
        index = list(hold_out(len(samples), split)) if not separate else []
        if separate:
            index = [i for i, sample in enumerate(samples) if sample.shard in (test if split == "test" else train)]
        items = [sample.image for sample in samples if sample.image is not None]
        if classes is None:
            return Listing(items, index)
        return Listing(items, index, [classes[i] for i in index], len(names) or max(classes) + 1, names)

    name, beside = files[0].name.split(".")[0], files[0].parent
    return image_set(name, split, listing, files=files, beside=beside, decoding=decoding, settings=[str(path), label])


class _Sample(NamedTuple):
    shard: Path
    key: str
    image: Item | None
    files: dict[str, Item]  # by suffix


def _samples(shard: Path) -> list[_Sample]:
    """The samples of a shard; a key ends at the first dot of a file's name."""
    samples: dict[str, dict[str, Item]] = {}
    for path, item in archive_members(existing_archive(shard), images_only=False).items():
        top, _, name = path.rpartition("/")
        key, _, suffix = name.partition(".")
        if key:
            samples.setdefault(f"{top}/{key}" if top else key, {})[suffix.lower()] = item
    suffixes = [suffix.removeprefix(".") for suffix in SUFFIXES]
    images = {
        key: next((files[suffix] for suffix in suffixes if suffix in files), None) for key, files in samples.items()
    }
    return [_Sample(shard, key, images[key], files) for key, files in samples.items()]


def _numbered(samples: Sequence[_Sample], label: str) -> tuple[list[int] | None, list[str]]:
    """The class of each sample, if they have any, and the classes' names, if these are words."""
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
    """The class in the .cls, or else in the .json."""
    suffix = next((suffix for suffix in ("cls", "json") if suffix in sample.files), None)
    if suffix is None:
        return None
    try:
        text = content_of(sample.files[suffix]).decode().strip()
        if suffix == "cls":
            return text
        value = json.loads(text).get(label)
    except Exception as error:  # the file may contain anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{sample.files[suffix].name}: not a class that can be read ({reason}): repair it") from error
    return None if value is None else str(value)


def _matching(pattern: str) -> list[Path]:
    """The files of a pattern, or none. If some exist, a file that braces spell out and that does not is an error."""
    names = [name for one in _braces(pattern) for name in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    files = [Path(name) for name in names]
    return [existing_archive(file) for file in files] if any(file.is_file() for file in files) else []


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
