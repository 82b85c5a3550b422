"""Encode a data set with an autoencoder once, and measure the shift and the scale of the codes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from scorefield.commands.arguments import at_least
from scorefield.commands.autoencoder_files import StoredAutoencoder, read_autoencoder, write_autoencoder
from scorefield.commands.code_cache import CodeCache, encoded, unpacked
from scorefield.commands.data_places import make_absolute, open_split
from scorefield.commands.progress_bar import progress_bar, tell
from scorefield.commands.run import device_of, read_run
from scorefield.configs import build
from scorefield.models.code_statistics import CodeStatistics, code_statistics
from scorefield.models.moments import Moments
from scorefield.training.data import Dataset

MEASURED = 10_000  # images over which shift and scale are measured
FOLDER = "codes"  # in the directory of an autoencoder
SHOWN = 8  # channels in a line


def codes(
    workdir: Path,
    *,
    data: str | None = None,
    split: str = "train",
    num: int | None = None,
    flip: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Cache the moments of a split's codes in WORKDIR/codes, and measure the shift and the scale of the codes.

    The mean and the deviation of each channel, with their standard errors, are written to WORKDIR/autoencoder.json. The
    training of a latent run then reads the moments, and draws codes from them anew every time.

    Args:
        workdir: of an autoencoder.
        data: the data set, as on a command line; by default that of the autoencoder.
        split: of that data, "train" or "test".
        num: training images over which shift and scale are measured, at random, 10,000 by default.
        flip: the mirrored images too, for runs with transform.flip.
        device: to encode on.

    Raises:
        ValueError: if there is no autoencoder, the directory is that of a latent run, no data is known, or the data
            does not fit.
    """
    at_least(2, num=num)
    _refuse_latent_run(workdir)
    stored = read_autoencoder(workdir, device_of(device))
    spec = data_of(stored, data, workdir)
    tell(f"reads the {split} split of {spec.name}")
    dataset = accepted(stored, open_split(spec, split))
    cache = CodeCache(workdir / FOLDER, stored, dataset, flip)
    measured = dataset if split == "train" else accepted(stored, open_split(spec, "train"))
    found = measure_codes(stored, measured, num or MEASURED)
    write_autoencoder(workdir, stored.with_statistics(found, dataset.name))
    try:
        cache.check()
    except ValueError:
        cache.clear()
    cache.make()
    shape = stored.code_shape(dataset.shape)
    return {
        "images": len(dataset),
        "codes": "x".join(map(str, shape)),
        **described(found),
        "files": [str(cache.folder), str(workdir / "autoencoder.json")],
    }


def _refuse_latent_run(workdir: Path) -> None:
    """Refuse the copy that a latent run has: another scale would be wrong for its weights."""
    if (workdir / "config.json").is_file() and not build.is_autoencoder(read_run(workdir, "cpu").config):
        raise ValueError(
            f"expected the directory of an autoencoder, got a run in {workdir}, whose weights belong to the scale of "
            "its own copy: give the --workdir where the autoencoder was trained or imported"
        )


def measure_codes(
    stored: StoredAutoencoder, dataset: Dataset, num: int = MEASURED, show: bool = True
) -> CodeStatistics:
    """The shift and the scale of the codes of images, at most `num` of them, at random."""
    some = dataset.subset(num)

    def moments() -> Iterator[Moments]:
        for part in encoded(stored, some, range(len(some))):
            bar.skip(len(part))
            yield unpacked(part[:, 0], stored.code_channels)

    with progress_bar("measure codes", len(some), show, unit="image") as bar:
        return code_statistics(moments())


def described(found: CodeStatistics) -> dict[str, Any]:
    """The statistics in a line each, with their standard errors."""

    def line(values: Sequence[float], errors: Sequence[float]) -> str:
        shown = [f"{value:.4g} +- {error:.1g}" for value, error in zip(values[:SHOWN], errors[:SHOWN], strict=True)]
        return ", ".join(shown) + (f", ... of {len(values)} channels" if len(values) > SHOWN else "")

    deviations = [1 / scale for scale in found.scale]
    errors = [deviation * error for deviation, error in zip(deviations, found.std_error, strict=True)]
    return {
        "mean of the codes": line(found.shift, found.shift_error),
        "deviation of the codes": line(deviations, errors),
        "measured over": f"{found.images} images",
    }


def data_of(stored: StoredAutoencoder, data: str | None, workdir: Path) -> ml_collections.ConfigDict:
    """The spec of the data: the given one, or that of the autoencoder.

    Raises:
        ValueError: if neither is known.
    """
    if data is not None:
        spec = build.spec(build.DATASETS, data)
        make_absolute(spec)
        return spec
    if stored.data is None:
        raise ValueError(
            f"expected --data, because {workdir} does not say what its autoencoder was trained on: give it"
        )
    return stored.data


def accepted(stored: StoredAutoencoder, dataset: Dataset) -> Dataset:
    """The data set, if the autoencoder takes its images.

    Raises:
        ValueError: for other channels, sides that do not divide, or other levels.
    """
    stored.code_shape(dataset.shape)
    if (dataset.levels is None) != (stored.levels is None):
        kinds = {True: "continuous values", False: "integers"}
        raise ValueError(
            f"expected {kinds[stored.levels is None]}, as this autoencoder was trained on, got "
            f"{kinds[dataset.levels is None]} in {dataset.name}: convert it, and save it as an array (.npy)"
        )
    return dataset
