"""What a run stores of its data, to be used without the data."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scorefield.training.data import Dataset
from scorefield.training.data.dataset import evenly_spaced
from scorefield.training.data.layout import shape_error

SHOWN = 8  # classes that a message names
MEASURED = 4096  # examples whose standard deviation is taken


@dataclass(frozen=True)
class DataFacts:
    """Facts of the data that a run was trained on.

    Args:
        name: what reports call it.
        shape: of one item, *D.
        levels: the number of values of an entry, or None if it is continuous.
        num_classes: the number of its classes, or None without labels.
        fingerprint: of the data and its labels.
        class_names: of the classes in their order, if they have names.
        class_counts: training examples of each class; empty where they were not counted.
        std: standard deviation of the stored values in a dimension, over 4,096 training examples: the root of the mean
            variance. None where it was not measured.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None
    num_classes: int | None
    fingerprint: str
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    std: float | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "DataFacts":
        """The facts of the training split of a data set."""
        label, classes = dataset.label, dataset.num_classes
        counts = () if label is None else tuple(np.bincount(label, minlength=classes or 0).tolist())
        facts = (dataset.name, dataset.shape, dataset.levels, classes, dataset.fingerprint)
        return cls(*facts, dataset.class_names, counts, _std(dataset))

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "DataFacts":
        """The facts as JSON has them."""
        facts: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()}
        return cls(**facts)

    def accept(self, dataset: Dataset, classes: bool) -> Dataset:
        """The data set, with its classes numbered as here if `classes` are used.

        Raises:
            ValueError: unless it has this shape, these levels and these classes, or some of them.
        """
        if dataset.shape != self.shape:
            raise shape_error(dataset.name, self.shape, dataset.shape)
        if dataset.levels != self.levels:
            raise ValueError(
                f"expected {_kind(self.levels)}, as this run was trained on, got {_kind(dataset.levels)} in "
                f"{dataset.name}: scale its values to these, and save them as an array (.npy)"
            )
        if not classes or dataset.label is None or dataset.num_classes is None or self.num_classes is None:
            return dataset
        named = bool(dataset.class_names)
        if named and self.class_names and dataset.class_names != self.class_names:
            return self._renumbered(dataset)
        # The largest number counts an array's classes, so an array may have fewer.
        if dataset.num_classes > self.num_classes or (named and dataset.num_classes < self.num_classes):
            raise ValueError(
                f"expected {self.num_classes} classes, as this run was trained on, got {dataset.num_classes} in "
                f"{dataset.name}"
            )
        return dataset

    def _renumbered(self, dataset: Dataset) -> Dataset:
        """The data set with its classes in the order of our names."""
        assert dataset.label is not None
        ours, theirs = self.class_names, dataset.class_names
        odd = [theirs[number] for number in np.unique(dataset.label) if theirs[number] not in ours]
        if odd:
            shown = ", ".join(ours[:SHOWN]) + (", ..." if len(ours) > SHOWN else "")
            raise ValueError(
                f"expected classes that this run was trained on ({shown}), got {odd[0]!r} in {dataset.name}: leave it "
                "out, or rename it"
            )
        number = np.array([ours.index(name) if name in ours else -1 for name in theirs], np.int64)
        return replace(dataset, label=number[dataset.label], num_classes=len(ours), class_names=ours)


def _std(dataset: Dataset) -> float:
    some = dataset.x[evenly_spaced(len(dataset), MEASURED)]
    return float(np.sqrt(some.astype(np.float64).var(0).mean()))


def _kind(levels: int | None) -> str:
    return "continuous values" if levels is None else f"{levels} levels (integers 0 .. {levels - 1})"
