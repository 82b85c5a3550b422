"""What the flags of an evaluation open: samples, and the data that they are compared with."""

from pathlib import Path

import numpy as np

from scorefield.commands.data_places import open_split
from scorefield.commands.evaluate.reference import SEED
from scorefield.commands.evaluate.sample_files import samples_of_file
from scorefield.commands.evaluate.subjects import Stored
from scorefield.commands.labels import class_number
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.progress_bar import tell
from scorefield.commands.trained import Trained
from scorefield.configs import build
from scorefield.evaluation.features.base import StoredAs
from scorefield.training.data import Dataset
from scorefield.training.data.dataset import random_rows

OTHER = {"train": "test", "test": "train"}
Sets = tuple[Dataset, Dataset]


def open_sets(
    trained: Trained | None, data: str | None, split: str, of_moments: bool, label: str | int | None
) -> Sets | None:
    """The split that samples are compared with, and the other one; None where statistics or nothing take their place.

    Samples of one class are compared with that class.

    Raises:
        ValueError: for options that contradict each other, or no data at all.
    """
    if split not in OTHER:
        raise ValueError(f"expected --split of train or test, got {split!r}: choose one")
    if of_moments:
        if data is not None:
            raise ValueError("expected --data or --reference, got both: leave one out")
        return None
    if trained is None and data is None:
        raise ValueError("expected --data or --reference to compare --input with, got neither: as --data=cifar10")
    if trained is not None and trained.run.on(data).config.data.get("path") == "":
        raise ValueError("expected data to compare with, because this run has none of its own: give --data=NAME")
    config = build.spec(build.DATASETS, data or "") if trained is None else trained.run.config.data
    tell(f"reads both splits of {config.name}")
    first, second = (
        open_split(config, each) if trained is None else trained.run.dataset(each) for each in (split, OTHER[split])
    )
    if label is None or trained is None or first.label is None or trained.run.num_classes is None:
        return first, second
    number = class_number(trained.run, label)
    return _of_class(first, number), _of_class(second, number)


def open_samples(path: Path, known: StoredAs | None, num: int, batch: int) -> Stored:
    """`num` samples of a file, with a line if there are others: at random, because files may be in an order.

    Raises:
        ValueError: as `samples_of_file`, or for fewer than two samples.
    """
    dataset = samples_of_file(path, known)
    if len(dataset) < 2:
        raise ValueError(f"expected at least 2 samples in {path}, got {len(dataset)}: give more")
    if num >= len(dataset):
        return Stored(dataset, batch)
    on_stderr(f"evaluates {num} of {len(dataset)} samples, drawn at random; --num={len(dataset)} takes all")
    return Stored(dataset.subset(num, SEED), batch, random_rows(len(dataset), num, SEED))


def _of_class(dataset: Dataset, number: int) -> Dataset:
    rows = np.flatnonzero(dataset.label == number)
    if len(rows) < 2:
        raise ValueError(
            f"expected images of class {number} in {dataset.name} ({dataset.split}), found {len(rows)}: choose another"
        )
    return dataset.at(rows)
