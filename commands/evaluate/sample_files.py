"""Samples of files, as they are: nothing is resized, and nothing is left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import report_beside
from scorefield.evaluation.features.base import StoredAs
from scorefield.training.data import Dataset, Decoding, image_files, read_images, whole_array
from scorefield.training.data.files.archive import archive_members
from scorefield.training.data.files.images import Images
from scorefield.training.data.files.listing import is_image
from scorefield.training.data.files.npz import heads, load

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
DARK = 128  # bytes of images have larger values than this
ADM = "arr_0"  # the name under which guided-diffusion's scripts save images (N, H, W, C)


def samples_of_file(path: Path, known: StoredAs | None) -> Dataset:
    """The samples of a folder or an archive of images, or of an .npy or .npz.

    The .npz of guided-diffusion, `arr_0` with channels last, is read as well.

    Args:
        path: the file or folder.
        known: how the reference is stored, where it is known.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or the samples have another shape or other levels than the reference.
    """
    path = path.expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"expected samples in {path}, which is not there: give a folder or a .zip of images, an .npy or an .npz"
        )
    dataset = _in_levels(_read(path, known), known)
    if known is not None and (dataset.shape != known.shape or dataset.levels != known.levels):
        raise ValueError(
            f"expected samples as the reference has them, {_kind(known.shape, known.levels)}, got "
            f"{_kind(dataset.shape, dataset.levels)} in {path}: save them so, or give another --data"
        )
    return dataset


def _read(path: Path, known: StoredAs | None) -> Dataset:
    channels = known.shape[0] if known and known.is_image and known.shape[0] in (1, 3) else 0
    decoding = Decoding(channels=channels)
    if path.is_dir():
        x, levels = read_images(image_files(path), decoding)
        return Dataset(path.resolve().name, "test", x, levels)
    if path.suffix.lower() in ARCHIVES:
        members = archive_members(path)
        names = sorted(filter(is_image, members), key=lambda name: name.split("/"))
        if not names:
            raise ValueError(f"expected images in {path}, found none: give a .zip or .tar of image files")
        images = Images([members[name] for name in names], range(len(names)), decoding)
        return Dataset(path.name.split(".")[0], "test", np.concatenate(list(images.chunks())), images.layout.levels)
    if path.suffix.lower() == ".npz" and ADM in heads(path):
        x = load(path, [ADM])[ADM]
        if x.ndim == 4 and x.shape[-1] in (1, 3) and x.dtype == np.uint8:
            return Dataset(path.stem, "test", np.ascontiguousarray(np.moveaxis(x, -1, 1)), 256)
    return _array(path) if known is None else whole_array(path, known.levels, labels=True)


def _array(path: Path) -> Dataset:
    """An array whose reference is not known. The report of --mode=sample beside it says its levels; bytes have 256."""
    report = report_beside(path)
    if "levels" in report:
        return whole_array(path, report["levels"], labels=True)
    is_bytes = all(head.dtype == "uint8" for head in heads(path).values() if len(head.shape) > 1)
    dataset = whole_array(path, 256 if is_bytes else None, labels=True)
    if is_bytes and (largest := int(dataset.x.max())) < DARK:
        on_stderr(
            f"{path} is taken for bytes of 256 levels, and its largest value is {largest}: if it has fewer levels, "
            "give --data, which says so"
        )
    return dataset


def _in_levels(dataset: Dataset, known: StoredAs | None) -> Dataset:
    """Images of files, which have 256 levels, rounded to the fewer levels of the reference; a line says so."""
    if known is None or known.levels is None or dataset.levels != 256 or known.levels >= 256:
        return dataset
    x = np.rint(np.asarray(dataset.x, np.float64) * ((known.levels - 1) / 255)).astype(np.uint8)
    on_stderr(f"{dataset.name}: 256 levels are rounded to the {known.levels} of the reference")
    return replace(dataset, x=x, levels=known.levels)


def _kind(shape: tuple[int, ...], levels: int | None) -> str:
    values = "continuous values" if levels is None else f"{levels} levels"
    return f"{'x'.join(map(str, shape))} of {values}"
