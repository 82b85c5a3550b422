"""Which images of a list belong to a split, what their classes are, and the data set that they make."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, hold_out
from scorefield.training.data.files.cache import Content, cached
from scorefield.training.data.files.decoding import Decoding, suitable
from scorefield.training.data.files.images import SUFFIXES, Images, Item, sizes_of

TESTS = ("test", "val", "valid", "validation")  # names of a folder, file or part that is the test split


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files, the places of a split among them, the class of each of those, and the classes' names, if any."""

    items: Sequence[Item]
    index: Sequence[int] | NDArray[np.int64]
    label: Sequence[int] | NDArray[np.int64] | None = None
    num_classes: int | None = None
    class_names: Sequence[str] = ()


def is_image(path: str) -> bool:
    """Whether a file in a folder or an archive is an image that is not hidden."""
    parts = path.split("/")
    return path.lower().endswith(SUFFIXES) and not any(part.startswith((".", "__MACOSX")) for part in parts)


def split_by_folders(
    items: Sequence[Item], paths: Sequence[str], split: Split, where: str, tops: Iterable[str] | None = None
) -> Listing:
    """The images of a split, and their classes, by their paths below the top.

    A folder `train` and one `test` (or `val`, `valid`, `validation`) at the top are the splits when both exist;
    otherwise every tenth image is the test split. When all images of a split lie in sub-folders, those are its
    classes, numbered by name over both splits. `tops` names the folders at the top, where some may be empty.

    Raises:
        ValueError: if the split has no images.
    """
    parts = [tuple(path.split("/")[:-1]) for path in paths]
    tops = {part[0] for part in parts if part} if tops is None else set(tops)
    test = next((name for name in TESTS if name in tops), TESTS[0])
    below = [part[1:] if part and part[0] in ("train", test) else part for part in parts]
    if {"train", test} <= tops:
        chosen = test if split == "test" else split
        kept = [i for i, part in enumerate(parts) if part[:1] in (("train",), (test,))]
        index = np.array([j for j, i in enumerate(kept) if parts[i][0] == chosen], np.int64)
        items, below = [items[i] for i in kept], [below[i] for i in kept]
    else:
        index = hold_out(len(items), split)
    if not len(index):
        raise ValueError(f"expected images in {where}/{split}, found none: put some there, or remove the folder")
    classes = {name: i for i, name in enumerate(sorted({part[0] for part in below if part}))}
    if not all(below[i] for i in index):
        return Listing(items, index)
    return Listing(items, index, [classes[below[i][0]] for i in index], len(classes), list(classes))


def image_set(
    name: str,
    split: Split,
    listing: Callable[[], Listing],
    *,
    files: Sequence[Path],
    beside: Path,
    decoding: Decoding,
    settings: Any = None,
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

    Raises:
        ValueError: as `Images` and `cached`.
    """
    if decoding.size is None:  # before the cache, which is that of the size
        size = 0 if decoding.crop else suitable(sizes_of(listing().items))
        decoding = dataclasses.replace(decoding, size=size)
    pixels = dataclasses.asdict(decoding)
    place, corrupt = pixels.pop("cache"), pixels.pop("corrupt")
    source = [split, pixels, corrupt, settings]
    x, facts = cached(place, beside, source, list(files), lambda: _content(listing(), decoding))
    label = None if facts["label"] is None else np.array(facts["label"], np.int64)
    names = (tuple(facts[key]) for key in ("skipped", "class_names"))
    return Dataset(name, split, x, facts["levels"], label, facts["num_classes"], *names)


def _content(listing: Listing, decoding: Decoding) -> Content:
    images = Images(listing.items, listing.index, decoding)

    def facts() -> dict[str, Any]:
        label = None if listing.label is None else [int(listing.label[i]) for i in images.kept]
        return {
            "levels": images.layout.levels,
            "label": label,
            "num_classes": listing.num_classes,
            "skipped": images.skipped,
            "class_names": listing.class_names,
        }

    return Content(images.layout.shape, images.layout.dtype, images.chunks(), facts)
