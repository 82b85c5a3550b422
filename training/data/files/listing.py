"""Which images of a list belong to a split, what their classes are, and the data set that they make."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from posixpath import splitext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, hold_out
from scorefield.training.data.files.cache import Content, cached
from scorefield.training.data.files.captions import captions_at
from scorefield.training.data.files.decoding import Decoding, suitable
from scorefield.training.data.files.images import Images, Item, image_suffixes, sizes_of
from scorefield.training.data.files.names import (
    SHARE,
    counted,
    described_splits,
    few,
    matches,
    members,
    split_of,
    splits_of,
    twins,
)

HIDDEN = ("/.", "/__MACOSX", "/@eaDir")  # how the names of folders and files begin that systems leave behind
LEFT_BEHIND = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files, the places of a split among them, the class of each of those, their names, and lines to say."""

    items: Sequence[Item]
    index: Sequence[int] | NDArray[np.int64]
    label: Sequence[int] | NDArray[np.int64] | None = None
    num_classes: int | None = None
    class_names: Sequence[str] = ()
    notes: Sequence[str] = ()


def is_hidden(path: str) -> bool:
    """Whether a file in a folder or an archive is hidden, or one that a system leaves behind."""
    below = f"/{path}"
    return any(start in below for start in HIDDEN) or below.rpartition("/")[2].lower() in LEFT_BEHIND


def is_image(path: str) -> bool:
    """Whether a file in a folder or an archive is an image that is not hidden."""
    return splitext(path)[1].lower() in image_suffixes() and not is_hidden(path)


def left_out(paths: Iterable[str], used: Collection[str] = ()) -> list[str]:
    """A line that counts the files of a set that are neither images nor `used`, by their endings; or none."""
    others = [path for path in paths if not is_image(path) and not is_hidden(path) and path not in used]
    if not others:
        return []
    endings = Counter(splitext(path)[1].lower() or "none" for path in others).most_common()
    counts = few([f"{count:,} {ending}" for ending, count in endings])
    return [f"left out {counted(len(others), 'file')} of other kinds ({counts}), as {others[0]}"]


def no_images(where: Path, notes: Sequence[str]) -> ValueError:
    """The error of a set without images, with what it has instead."""
    return ValueError(
        f"expected images in {where} (.png, .jpg and all that Pillow reads), found none: "
        + (f"{notes[0]}; convert them to .png" if notes else "put some there")
    )


def split_by_folders(
    items: Sequence[Item],
    paths: Sequence[str],
    split: Split,
    where: str,
    tops: Iterable[str] = (),
    image: str = "",
    splits: bool = True,
) -> Listing:
    """The images of a split, and their classes, by their paths below the top.

    Folders whose names differ only in a word for a split (`Train` and `VAL`, `seg_train` and `seg_test`) are the
    splits; otherwise every tenth image is the test split. When images lie in sub-folders, those are the classes,
    numbered by name over both splits. A few images above them are left out.

    Args:
        items: the images.
        paths: theirs, below the top.
        split: "train" or "test".
        where: the top, in messages.
        tops: the folders at the top, where some may be empty.
        image: an ending or a pattern of the images to read, as in `matches`.
        splits: whether names of folders may mean splits.

    Raises:
        ValueError: if the split has no images, or a sample has several.
    """
    items, paths, notes = _chosen(items, paths, where, image)
    parts = [tuple(path.split("/")[:-1]) for path in paths]
    level, names = _split_folders(parts, where, tops) if splits else (0, {})
    sides: dict[str, Split] = dict.fromkeys(members(names, "train"), "train")
    sides |= dict.fromkeys(members(names, "test"), "test")
    side = [sides.get("".join(part[level : level + 1])) if names else split for part in parts]
    inside = [i for i in range(len(parts)) if side[i]]
    if split not in side:
        raise ValueError(
            f"expected images in {where}/{few(members(names, split))}, found none: put some there, or remove the folder"
        )
    if names:
        notes.append(described_splits(names))
    if outside := sorted({paths[i].split("/")[0] for i in set(range(len(parts))).difference(inside)} - set(names)):
        notes.append(f"left out images beside the splits, in {few(outside)}")
    below = dict(zip(inside, _class_folders([parts[i] for i in inside], level if names else None, splits), strict=True))
    classes = sorted({part[0] for part in below.values() if part})
    own, labelled, said = _strays([i for i in inside if side[i] == split], below, paths)
    other = _strays([i for i in inside if side[i] != split], below, paths)[0]
    index = hold_out(len(own), split) if not names else np.arange(len(own))
    images = [items[i] for i in (*own, *other)]
    if not classes or not labelled:
        return Listing(images, index, notes=[*notes, *said])
    if splits and (odd := [name for name in classes if split_of(name)[1] == "*"]):
        notes.append(f"{few(odd)} taken for a class, as no folder is the other split")
    number = {name: i for i, name in enumerate(classes)}
    label = [number[below[own[j]][0]] for j in index]
    return Listing(images, index, label, len(classes), classes, [*notes, *said])


def _chosen(
    items: Sequence[Item], paths: Sequence[str], where: str, image: str
) -> tuple[list[Item], list[str], list[str]]:
    """The images that the setting `image` chooses, their paths, and lines about the others."""
    if not image:
        line = twins(paths, where)
        return list(items), list(paths), [line] if line else []
    chosen = [i for i, path in enumerate(paths) if matches(image, path)]
    if not chosen:
        raise ValueError(f"expected images as {image!r} in {where}, found none: choose another ending (image=)")
    others = len(paths) - len(chosen)
    notes = [f"left out {counted(others, 'image')} that are not {image!r}"] if others else []
    return [items[i] for i in chosen], [paths[i] for i in chosen], notes


def _split_folders(parts: Sequence[tuple[str, ...]], where: str, tops: Iterable[str]) -> tuple[int, dict[str, str]]:
    """The folders that are splits, and their level: the highest one, at the top or below nearly all images."""
    for level in range(max(1, *map(len, parts))):
        there = [part[level] for part in parts if len(part) > level]
        names = splits_of({*there, *(tops if level == 0 else ())}, where)
        inside = sum(name in names for name in there)
        if names and (level == 0 or (len(parts) - inside) * SHARE <= len(parts)):
            return level, names
    return 0, {}


def _class_folders(parts: Sequence[tuple[str, ...]], level: int | None, splits: bool) -> list[tuple[str, ...]]:
    """Folders from the classes on: without splits, and without a folder that contains all others."""
    if level is not None:
        above = 0 if len({part[:level] for part in parts}) > 1 else level
        repeated = all(part[level] == "".join(part[level + 1 : level + 2]) for part in parts)  # seg_test/seg_test/cat
        parts = [part[above:level] + part[level + 1 + repeated :] for part in parts]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    single = len({part[:1] for part in parts}) == 1 and parts[0] and split_of(parts[0][0])[1] == "*"
    return [part[1:] for part in parts] if splits and single and level is None else list(parts)


def _strays(
    places: Sequence[int], below: Mapping[int, tuple[str, ...]], paths: Sequence[str]
) -> tuple[list[int], bool, list[str]]:
    """The places of images without a few strays above the folders of the classes; whether all have a class; lines."""
    loose = [i for i in places if not below[i]]
    classes = sorted({below[i][0] for i in places if below[i]})
    if not loose or not classes:
        return list(places), bool(classes), []
    if len(classes) == 1 or len(loose) > max(1, len(places) // SHARE):
        line = f"no classes: {len(loose)} of {len(places)} images lie above the folders {few(classes)}"
        return list(places), False, [line]
    line = f"left out {counted(len(loose), 'image')} above the folders of the classes: {few([paths[i] for i in loose])}"
    return [i for i in places if below[i]], True, [line]


def image_set(
    name: str,
    split: Split,
    listing: Callable[[], Listing],
    *,
    files: Sequence[Path],
    beside: Path,
    decoding: Decoding,
    settings: Any = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """The images of a listing as a data set, decoded once.

    Args:
        name: what reports call it.
        split: "train" or "test".
        listing: makes the list; it is called only if the decoded images are not in the cache.
        files: the files with the images.
        beside: the folder in which the cache lies by default.
        decoding: into what.
        settings: what else the listing depends on.
        notes: lines about the set, before those of the listing.

    Raises:
        ValueError: as `Images` and `cached`.
    """
    listing = functools.cache(listing)
    if decoding.size is None:  # before the cache, which is that of the size
        size = 0 if decoding.crop else suitable(sizes_of(listing().items, decoding.exif))
        decoding = dataclasses.replace(decoding, size=size)
    pixels = dataclasses.asdict(decoding)
    place, corrupt = pixels.pop("cache"), pixels.pop("corrupt")
    source = [split, pixels, corrupt, settings]
    x, facts = cached(place, beside, source, list(files), lambda: _content(listing(), decoding))
    label = None if facts["label"] is None else np.array(facts["label"], np.int64)
    skipped, class_names = (tuple(facts[key]) for key in ("skipped", "class_names"))
    said = (*notes, *facts["notes"])
    cond = {} if facts.get("caption") is None else {"caption": np.array(facts["caption"], np.str_)}
    return Dataset(name, split, x, facts["levels"], label, facts["num_classes"], skipped, class_names, said, cond)


def _content(listing: Listing, decoding: Decoding) -> Content:
    images = Images(listing.items, listing.index, decoding)

    def facts() -> dict[str, Any]:
        label = None if listing.label is None else [int(listing.label[i]) for i in images.kept]
        count = len(images.skipped)
        skipped = [f"skipped {counted(count, 'image')} that cannot be read: {few(images.skipped)}"] if count else []
        return {
            "levels": images.layout.levels,
            "label": label,
            "num_classes": listing.num_classes,
            "skipped": images.skipped,
            "class_names": listing.class_names,
            "caption": captions_at(listing.items, [int(listing.index[i]) for i in images.kept]),
            "notes": [*listing.notes, *images.notes, *skipped],
        }

    return Content(images.layout.shape, images.layout.dtype, images.chunks(), facts)
