"""CelebA's aligned faces, cropped and scaled as in the papers."""

import os
import re
from pathlib import Path

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.archive import archive_members
from scorefield.training.data.files.decoding import Decoding
from scorefield.training.data.files.folder import image_files
from scorefield.training.data.files.images import Item
from scorefield.training.data.files.listing import Listing, image_set
from scorefield.training.data.files.paths import data_root

PLACES = ("celeba/img_align_celeba", "img_align_celeba", "CelebA/Img/img_align_celeba", "CelebA/img_align_celeba")
ENDS = (162_770, 182_637, 202_599)  # the last image of train, of validation and of test
PARTS = {"train": 0, "valid": 1, "test": 2}


def celeba(
    root: str | os.PathLike[str] | None = None,
    split: Split = "train",
    *,
    size: int = 64,
    test: str = "test",
    corrupt: str = "error",
    cache: str | os.PathLike[str] = "",
) -> Dataset:
    """CelebA (Liu et al. 2015): 162,770 + 19,962 faces (3, size, size), without labels.

    The middle 140x140 of 178x218 is scaled to `size`, bilinearly and antialiased, as Song and Ermon 2020 and
    Song et al. 2021 do. Reads `root`/celeba/img_align_celeba, a folder or a .zip. The splits are those of
    list_eval_partition.txt beside it, or the same from the images' numbers.

    Args:
        root: the folder of the data sets; by default DATA_ROOT of the environment, or `data`.
        split: "train" or "test".
        size: the pixels of a side.
        test: the part that is the test split: "test", or "valid" as in Song et al. 2021.
        corrupt: as in `Decoding`.
        cache: as in `Decoding`.

    Raises:
        FileNotFoundError: if there is no CelebA.
        ValueError: if there are no images of the split, or one cannot be read.
    """
    check_split(split)
    if test not in ("test", "valid"):
        raise ValueError(f"expected test to be test or valid, got {test!r}: these are CelebA's parts")
    part = PARTS[test if split == "test" else "train"]
    place = _place(data_root(root))
    zipped = place.suffix == ".zip"
    partition = place.parent / "list_eval_partition.txt"
    files = [place] if zipped else image_files(place)
    parts = [partition] if partition.is_file() else []

    def listing() -> Listing:
        plain = {file.name: Item.of(file) for file in files}
        members = archive_members(place) if zipped else plain
        names = sorted(members, key=lambda name: name.split("/")[-1])
        known = _listed_parts(parts[0]) if parts else {}
        index = [i for i, name in enumerate(names) if _part(name.split("/")[-1], known) == part]
        if not index:
            raise ValueError(f"{place}: expected images of {split}, found none: fetch img_align_celeba.zip again")
        return Listing([members[name] for name in names], index)

    decoding = Decoding(size, crop=140, resample="bilinear", channels=3, corrupt=corrupt, cache=cache)
    return image_set(
        "celeba", split, listing, files=[*files, *parts], beside=place.parent, decoding=decoding, settings=part
    )


def _place(root: Path) -> Path:
    for place in PLACES:
        for path in (root / place, root / f"{place}.zip"):
            if path.is_dir() or path.is_file():
                return path
    raise FileNotFoundError(
        f"expected {root / PLACES[0]}, a folder or .zip, which is not there: fetch img_align_celeba.zip from CelebA's "
        "home, or set DATA_ROOT to the folder of your data sets"
    )


def _listed_parts(file: Path) -> dict[str, int]:
    """The part of each image, from lines of a name and a number."""
    lines = [line.split() for line in file.read_text().splitlines()]
    if any(len(line) != 2 or line[1] not in "012" for line in lines if line):
        raise ValueError(f"{file}: expected lines as '000001.jpg 0', with parts 0, 1 and 2: fetch it again")
    return {line[0].split(".")[0]: int(line[1]) for line in lines if line}


def _part(name: str, known: dict[str, int]) -> int | None:
    stem = name.split(".")[0]
    if known or not re.fullmatch("[0-9]+", stem):
        return known.get(stem)
    return next((part for part, end in enumerate(ENDS) if int(stem) <= end), None)
