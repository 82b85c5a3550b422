"""Shards in WebDataset's format: tars of <key>.jpg or .png with <key>.cls or <key>.json beside it."""

import fnmatch
import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scorefield.training.data.dataset import Dataset, Split, check_split, hold_out
from scorefield.training.data.files.archive import archive_members, existing_archive
from scorefield.training.data.files.captions import check_setting, with_captions
from scorefield.training.data.files.decoding import Decoding, image_reader
from scorefield.training.data.files.images import Item, content_of
from scorefield.training.data.files.listing import Listing, image_set, is_image, left_out, no_images
from scorefield.training.data.files.names import counted, described_splits, matches, members, split_of, splits_of
from scorefield.training.data.files.paths import nonempty_path

SIDES: tuple[Split, Split] = ("train", "test")
BRACES = re.compile(r"\{([^{}]*)\}")


@image_reader
def shards(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    label: str = "label",
    image: str = "",
    splits: bool = True,
    caption: str = "",
    decoding: Decoding,
) -> Dataset:
    """The images of tar shards, in the order of the shards and of the keys in them.

    `path` names one tar or several: "a-{000..012}.tar", "{a,b}.tar", "a-*.tar". Shards are the splits if their names
    differ only in numbers and in a word for a split: "*.tar" for a-train-0.tar and a-val-0.tar, or "a-{split}-*.tar".
    Otherwise every tenth image is the test split. A sample's class is the number or the word in its .cls, or the entry
    `label` of its .json; words are numbered in alphabetical order. All samples have a class, or none has.

    The other arguments are those of `folder`; `image` is the ending where samples have several images, as "jpg". A
    sample's caption is its .txt. By default the cache lies beside the first shard.

    Raises:
        FileNotFoundError: if there are no shards.
        ValueError: if one is damaged, only some samples have a class, a sample has several images, or as `folder`.
    """
    check_split(split)
    check_setting(caption)
    sides, notes = _split_files(str(nonempty_path(path)), split, splits)
    files = list(sides)

    def listing() -> Listing:
        every = [sample for file in files for sample in _samples(file, image)]
        samples = [sample for sample in every if sample.image is not None]
        if not samples:
            raise no_images(files[0], left_out(f"{s.key}.{name}" for s in every for name in s.files))
        others = len(every) - len(samples)
        lines = (
            [f"left out {counted(others, 'sample')} without {repr(image) if image else 'an image'}"] if others else []
        )
        classes, names = _numbered(samples, label)
        index = [i for i, sample in enumerate(samples) if sides[sample.shard] == split]
        if None in sides.values():
            index = list(hold_out(len(samples), split))
        keys = [f"{sample.shard.name}/{sample.key}" for sample in samples]
        texts = {
            f"{key}.txt": sample.files["txt"]
            for key, sample in zip(keys, samples, strict=True)
            if "txt" in sample.files and caption != "none"
        }
        items, said = with_captions([sample.image for sample in samples if sample.image is not None], keys, texts)
        lines = [*lines, *said]
        if classes is None:
            return Listing(items, index, notes=lines)
        number = len(names) or max(classes) + 1
        return Listing(items, index, [classes[i] for i in index], number, names, lines)

    name, beside, settings = (
        files[0].name.split(".")[0],
        files[0].parent,
        [str(Path(path).expanduser().absolute()), label, image, splits, *([] if caption == "none" else ["captions"])],
    )
    return image_set(
        name, split, listing, files=files, beside=beside, decoding=decoding, settings=settings, notes=notes
    )


def _split_files(pattern: str, split: Split, splits: bool) -> tuple[dict[Path, Split | None], list[str]]:
    """The shards with the split of each (None where every tenth image is held out), and a line that says so."""
    if "{split}" in pattern:
        words = {word: kind for word in _words(pattern) for kind, rest in [split_of(word)] if rest == "*"}
        groups = {word: _matching(pattern.replace("{split}", word)) for word in words}
    else:
        files = _matching(pattern)
        top = os.path.commonpath([file.parent for file in files]) if files else ""
        names = {os.path.relpath(file, top): file for file in files}
        words = splits_of(names, pattern) if splits else {}
        groups = {name: [file] for name, file in names.items()}
        if files and not words:
            return dict.fromkeys(files), []
    sides: dict[Path, Split | None] = {}
    for side in SIDES:
        sides |= {file: side for word in members(words, side) for file in groups[word]}
    if split not in sides.values():
        raise FileNotFoundError(f"expected shards of {split} as {pattern}, found none: give their path")
    return sides, [described_splits(words)]


def _words(pattern: str) -> list[str]:
    """What stands for {split} in the names of files."""
    words: set[str] = set()
    for one in _braces(pattern.replace("{split}", "\0")):
        expression = re.compile(fnmatch.translate(one).replace("\0", "([^/]*)"))
        matched = map(expression.match, glob.glob(one.replace("\0", "*")))
        words.update(match[1] for match in matched if match)
    return sorted(words)


class _Sample(NamedTuple):
    shard: Path
    key: str
    image: Item | None
    files: dict[str, Item]  # by suffix


def _samples(shard: Path, image: str) -> list[_Sample]:
    """The samples of a shard, each with its image; a key ends at the first dot of a file's name."""
    samples: dict[str, dict[str, Item]] = {}
    for path, item in archive_members(existing_archive(shard), images_only=False).items():
        top, _, name = path.rpartition("/")
        key, _, suffix = name.partition(".")
        if key:
            samples.setdefault(f"{top}/{key}" if top else key, {})[suffix.lower()] = item
    return [_Sample(shard, key, _image(shard, key, files, image), files) for key, files in samples.items()]


def _image(shard: Path, key: str, files: Mapping[str, Item], image: str) -> Item | None:
    """The image of a sample, by the setting `image` if it has several.

    Raises:
        ValueError: if there are several still.
    """
    known = [suffix for suffix in files if is_image(f"x.{suffix}")]
    if image:
        known = [image.lower()] if image.lower() in known else [each for each in known if matches(image, f"x.{each}")]
    if len(known) > 1:
        raise ValueError(
            f"{shard}: expected one image for each sample, got {key}.{f' and {key}.'.join(known)}: choose "
            + " or ".join(f"image={suffix}" for suffix in known)
        )
    return files[known[0]] if known else None


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
