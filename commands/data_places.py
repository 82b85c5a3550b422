"""The place of a data set: made absolute where a run is written, so that a command finds it from any folder."""

from pathlib import Path

import ml_collections

from scorefield.configs import build
from scorefield.training.data import Dataset

PLACES = ("path", "root", "cache")  # settings of a data set that may name a file or a folder


def open_split(data: ml_collections.ConfigDict, split: str) -> Dataset:
    """A split of the data set of a configuration.

    Raises:
        FileNotFoundError: if there is no such data. Where its place is relative, the current folder is named too.
        ValueError: as its reader.
    """
    try:
        dataset: Dataset = build.build(build.DATASETS, data, split=split)
    except FileNotFoundError as error:
        relative = [f"{key}={data[key]}" for key in ("path", "root") if _is_relative(key, data)]
        if not relative:
            raise
        raise FileNotFoundError(
            f"{error} ({relative[0]} was looked for below the current folder, {Path.cwd()}: run the command from the "
            "folder that has it, or give an absolute path)"
        ) from error
    return dataset


def make_absolute(data: ml_collections.ConfigDict) -> None:
    """Make the places of a data set absolute, in place. Names on a hub, which are no files here, stay."""
    for key in PLACES:
        if _is_relative(key, data) and (Path(data[key]).exists() or data.name == "shards"):
            data[key] = str(Path(data[key]).absolute())


def _is_relative(key: str, data: ml_collections.ConfigDict) -> bool:
    """Whether a setting names a place below the current folder."""
    place = data.get(key)
    named = isinstance(place, str) and bool(place) and (key, place) != ("cache", "off")
    return named and not Path(place).expanduser().is_absolute()
