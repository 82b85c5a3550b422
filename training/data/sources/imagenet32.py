"""The two sets that papers call ImageNet 32x32. Their bits/dim differ by some 0.25, so a report has to say which."""

import dataclasses
import os
from pathlib import Path

from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files.archive import archive_members
from scorefield.training.data.files.decoding import Decoding
from scorefield.training.data.files.folder import image_files
from scorefield.training.data.files.images import Item
from scorefield.training.data.files.listing import Listing, image_set, no_images
from scorefield.training.data.files.paths import data_root
from scorefield.training.data.sources.imagenet import imagenet

SHAPE = (3, 32, 32)
VERSIONS = ("new", "old")
PARTS = {"train": "train_32x32", "test": "valid_32x32"}
FOLDERS = ("imagenet32", "ImageNet32", "Imagenet32", "imagenet32_old", ".")


def imagenet32(
    root: str | os.PathLike[str] | None = None,
    split: Split = "train",
    *,
    version: str = "new",
    cache: str | os.PathLike[str] = "",
) -> Dataset:
    """ImageNet at 32x32, one of two sets; reports call it imagenet32_new or imagenet32_old.

    - new: Chrabaszcz et al. 2017, Imagenet32_train.zip, resized with antialiasing and so easier to compress. It has
      1,281,167 + 50,000 images with 1000 classes. i-DODE and flow matching report on it. Files as in `imagenet`.
    - old: van den Oord et al. 2016, train_32x32.tar and valid_32x32.tar: 1,281,149 + 49,999 images without classes.
      PixelRNN, VDM and ScoreFlow report on it, and i-DODE too. Reads the archives, or folders of the same names, in
      `root` or in `root`/imagenet32. Its home has taken it down.

    Args:
        root: the folder of the data sets; by default DATA_ROOT of the environment, or `data`.
        split: "train" or "test", which is their validation part.
        version: "new" or "old".
        cache: as in `Decoding`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for another version, or if a file has other content.
    """
    check_split(split)
    if version not in VERSIONS:
        raise ValueError(
            f"expected version to be new (Imagenet32_train.zip) or old (train_32x32.tar), got {version!r}: choose one"
        )
    name = f"imagenet32_{version}"
    if version == "new":
        return dataclasses.replace(imagenet(root, split, size=32, cache=cache), name=name)
    place = _place(data_root(root), PARTS[split])
    files = image_files(place) if place.is_dir() else [place]

    def listing() -> Listing:
        members = {file.name: Item.of(file) for file in files} if place.is_dir() else archive_members(place)
        if not members:
            raise no_images(place, ())
        items = [members[each] for each in sorted(members)]
        return Listing(items, range(len(items)))

    decoding = Decoding(size=0, channels=3, cache=cache)
    dataset = image_set(name, split, listing, files=files, beside=place.parent, decoding=decoding, settings=place.name)
    if dataset.shape != SHAPE:
        raise ValueError(f"{place}: expected images of 32x32 pixels, got shape {dataset.shape}: fetch it again")
    return dataset


def _place(root: Path, part: str) -> Path:
    for folder in FOLDERS:
        for path in (root / folder / part, root / folder / f"{part}.tar"):
            if path.is_dir() or path.is_file():
                return path
    raise FileNotFoundError(
        f"expected {root / FOLDERS[0] / part}.tar, or a folder of that name without .tar, which is not there: put the "
        "old set there, or read the new one (version=new, --config.data.version=new)"
    )
