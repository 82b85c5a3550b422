"""What people call the splits of a set, the arrays of a file, and the masks beside photos."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from scorefield.training.data.dataset import Split

SPLITS = {
    "train": "train[-_ ]?val|train|training|trn|tr",
    "test": "test|testing|tst|te|hold[-_ ]?out|held[-_ ]?out",
    "val": "val|valid|validation|dev|eval|evaluation",
}
SPLIT = re.compile(
    "(?<![a-z])(?:" + "|".join(f"(?P<{kind}>{words})" for kind, words in SPLITS.items()) + ")(?:[-_ ]?set)?s?(?![a-z])"
)
CAMEL = re.compile("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
MASK = (
    "masks?|segs?|segmentations?|segmentation(?:class|object)|annotations?|gts?|ground[-_ ]?truths?|trimaps?|labels?|"
    "depths?"
)
MASKS = re.compile(rf"(?:(.+?)[-_. ]+)?(?:{MASK})(?:[-_ ]?[0-9]+)?")
PHOTOS = re.compile("images?|imgs?|photos?|pictures?|inputs?|jpe?gs?|jpegimages|rgb")
LABELS = {"y", "ys", "label", "labels", "target", "targets", "class", "classes", "cls", "category", "categories"}
DATA = {
    "x", "xs", "data", "dataset", "image", "images", "img", "imgs", "feature", "features", "sample", "samples", "input",
    "inputs", "pixels", "points", "vectors",
}  # fmt: skip
SHARE = 10  # one exception in ten is an accident, more are no exceptions


def split_of(name: str) -> tuple[str, str]:
    """The split that a name says ("train", "test", "val", or ""), and the rest of the name, with # for any number."""
    plain = CAMEL.sub("_", name).lower()
    matched = list(SPLIT.finditer(plain))
    kind = matched[0].lastgroup or "" if len(matched) == 1 else ""
    return kind, re.sub("[0-9]+", "#", SPLIT.sub("*", plain) if kind else plain)


def splits_of(names: Iterable[str], where: str) -> dict[str, str]:
    """The split of each name, where names differ in the split alone; none, unless one is for training and one is not.

    Raises:
        ValueError: if there are several such sets of names, or splits of a set without one for training.
    """
    families: dict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        kind, rest = split_of(name)
        if kind:
            families[rest][name] = kind
    sets = [family for family in families.values() if len(set(family.values())) > 1]
    if len(sets) > 1:
        raise ValueError(
            f"expected one training and one test split in {where}, got {', '.join(name for f in sets for name in f)}: "
            "give the path of one set, or take these names for classes (splits=False)"
        )
    if sets and "train" not in sets[0].values():
        raise ValueError(
            f"expected a training split beside {', '.join(sets[0])} in {where}, found none: rename one to train, or "
            "take these names for classes (splits=False)"
        )
    return sets[0] if sets else {}


def words_of(name: str) -> set[str]:
    """The words of a name, without one for a split."""
    return set(re.findall("[a-z]+", split_of(name)[1]))


def is_label(name: str) -> bool:
    """Whether a name says no more than that it has labels, as "y_train" or "image_labels"."""
    words = words_of(name)
    return bool(words & LABELS) and words <= LABELS | DATA


def held_out_name(kinds: Iterable[str]) -> str:
    """Which of the splits is held out: "test", or else "val", or "" if there is neither."""
    return next((kind for kind in ("test", "val") if kind in set(kinds)), "")


def members(splits: Mapping[str, str], split: Split) -> list[str]:
    """The names that belong to a split, of those of `splits_of`."""
    kind = "train" if split == "train" else held_out_name(splits.values())
    return [name for name, each in splits.items() if each == kind]


def described_splits(splits: Mapping[str, str]) -> str:
    """A line that says which names are which split."""
    train, test = members(splits, "train"), members(splits, "test")
    others = [name for name in splits if name not in (*train, *test)]
    return f"training on {few(train)}, testing on {few(test)}" + (f", {few(others)} not used" if others else "")


def few(names: Sequence[Any], most: int = 3) -> str:
    """The first names, and how many there are more."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(count: int, what: str) -> str:
    """A number of things, as "1 image" or "2 images"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def matches(pattern: str, path: str) -> bool:
    """Whether a path has an ending as "jpg", or a pattern as "*/images/*", or not one as "!*_mask.png"."""
    negative, pattern = pattern.startswith("!"), pattern.removeprefix("!").lower()
    ending = pattern if any(sign in pattern for sign in "*?[") else f".{pattern.removeprefix('.')}"
    return fnmatch(f"/{path.lower()}", f"*{ending}") is not negative


def twins(paths: Sequence[str], where: str) -> str:
    """A line that names images of one sample, such as a photo and its mask, if there are a few; else "".

    These have one name with different endings, or a word for a mask in the name or in the folder of one.

    Raises:
        ValueError: if a tenth of the samples has several.
    """
    photos: dict[str, str] = {}
    masks: list[tuple[str, str]] = []
    pairs: list[tuple[str, str]] = []
    for path in paths:
        key, mask = _sample(path)
        if mask:
            masks.append((key, path))
        elif photos.setdefault(key, path) != path:
            pairs.append((photos[key], path))
    pairs += [(photos[key], path) for key, path in masks if key in photos]
    if not pairs:
        return ""
    as_one = f"as {pairs[0][0]} and {pairs[0][1]}"
    if len(pairs) * SHARE < len(photos):
        return f"{counted(len(pairs), 'image')} with the name of another one, {as_one}: all are read"
    raise ValueError(
        f"expected one image for each sample in {where}, got {len(pairs)} more, {as_one}: choose by ending or pattern "
        "(image=jpg, image='*/images/*', image='!*_mask*', or image='*' for all)"
    )


def _sample(path: str) -> tuple[str, bool]:
    """The sample that an image belongs to, and whether it is a mask of it, by its path."""
    *folders, name = path.lower().split("/")
    parts, mask = [], False
    for part in (*folders, name.rpartition(".")[0]):
        word = MASKS.fullmatch(part)
        mask = mask or word is not None
        kept = word[1] or "" if word else part
        parts += [] if not kept or PHOTOS.fullmatch(kept) else [kept]
    return "/".join(parts), mask
