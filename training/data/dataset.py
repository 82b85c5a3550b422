"""A data set in memory or mapped into it, checked once, and the rule that holds out a test split."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.conditions import check_conditions, update

Split = Literal["train", "test"]
LARGE = 1 << 30  # bytes; of a larger set, only a sample of items is checked and hashed
SAMPLE = 16_384  # items of that sample, evenly spaced


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, as it is stored: nothing is scaled, flipped or shuffled.

    Args:
        name: what reports call it.
        split: "train" or "test".
        x: the data (N, *D): integers in 0 .. levels - 1 (images channel-first), or float32 if continuous; an
            array, which may be mapped from a file, or `LazyRows` of one.
        levels: the number of values of an entry of `x`, or None if it is continuous.
        label: the class of each item (N,), int64 in 0 .. num_classes - 1, or None.
        num_classes: the number of classes over both splits, or None without labels.
        skipped: the names of items that could not be read, where the reader skips these.
        class_names: the names of the classes in their order, if they have names.
        notes: lines that say what the reader took for granted, and what it left out.
        cond: further rows of each item by name, which a denoiser may be conditioned on; see `conditions`.

    Raises:
        ValueError: if any of this does not hold, or `x` is empty or not finite. Above 1 GiB only 16,384 items, evenly
            spaced, are checked.
    """

    name: str
    split: Split
    x: NDArray[Any] = field(repr=False)
    levels: int | None
    label: NDArray[np.int64] | None = field(default=None, repr=False)
    num_classes: int | None = None
    skipped: tuple[str, ...] = ()
    class_names: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    cond: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_split(self.split)
        _check_data(self.name, self.x, self.levels)
        _check_labels(self.name, self.label, self.num_classes, len(self.x))
        check_conditions(self.name, self.cond, len(self.x))
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name}: expected a name for each of {self.num_classes} classes, got {len(self.class_names)}"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape *D of one item."""
        return tuple(self.x.shape[1:])

    def subset(self, count: int | None, seed: int = 0) -> "Dataset":
        """`count` items at random, with all that belongs to them, or all if there are no more; see `random_rows`."""
        return self if count is None or count >= len(self) else self.at(random_rows(len(self), count, seed))

    def at(self, rows: NDArray[np.int64]) -> "Dataset":
        """The items at these places, with their labels and conditions."""
        label = None if self.label is None else self.label[rows]
        return replace(self, x=self.x[rows], label=label, cond={key: each[rows] for key, each in self.cond.items()})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of data, labels and conditions with their shapes and types: a report's data hash.

        Above 1 GiB, of 16,384 items, evenly spaced.
        """
        digest = hashlib.sha256()
        for array in (self.x, self.label):
            if array is not None:
                digest.update(f"{array.dtype.str} {array.shape} ".encode())
                for rows in inspected(array):
                    digest.update(np.ascontiguousarray(rows).data)
        update(digest, self.cond)
        return digest.hexdigest()


def inspected(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows that are checked and hashed, in chunks: all up to 1 GiB, else 16,384, evenly spaced."""
    size = max(1, (1 << 26) // max(1, x.nbytes // max(1, len(x))))
    if x.nbytes <= LARGE:
        for first in range(0, len(x), size):
            yield x[first : first + size]
        return
    rows = evenly_spaced(len(x), SAMPLE)
    for first in range(0, len(rows), size):
        yield x[rows[first : first + size]]


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the places 0 .. count - 1, evenly spaced, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def random_rows(count: int, most: int | None, seed: int = 0) -> NDArray[np.int64]:
    """`most` of the places 0 .. count - 1: the first of one permutation for each seed, so smaller draws are in larger.

    All places in their order, if there are no more.
    """
    rows: NDArray[np.int64] = np.arange(count, dtype=np.int64)
    return rows if most is None or most >= count else np.random.default_rng(seed).permutation(rows)[:most]


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is "train" or "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"expected split to be train or test, got {split!r}: choose one")


def hold_out(count: int, split: Split, every: int = 10) -> NDArray[np.int64]:
    """The places of a split among `count`: the first and every `every`-th after it are the test split.

    Raises:
        ValueError: if that leaves a split empty.
    """
    check_split(split)
    if count < 2:
        raise ValueError(
            f"expected at least two items, because one of them is held out for testing, got {count}: add items, or "
            "give a train and a test split"
        )
    index: NDArray[np.int64] = np.arange(count, dtype=np.int64)
    tests = index[::every]
    return tests if split == "test" else np.delete(index, tests)


def _check_data(name: str, x: NDArray[Any], levels: int | None) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"{name}: expected data of shape (N, *D), got {x.shape}: give each item a dimension, as in x[:, None]"
        )
    if x.size == 0:
        raise ValueError(f"{name}: expected at least one item of at least one entry, got shape {x.shape}: add data")
    if levels is None:
        if x.dtype != np.float32:
            raise ValueError(f"{name}: expected continuous data in float32, got {x.dtype}: cast it, or give its levels")
        count = sum(int(np.sum(~np.isfinite(rows))) for rows in inspected(x))
        if count:
            raise ValueError(f"{name}: expected finite data, got {count} NaN or infinite entries: remove those items")
        return
    if levels < 2:
        raise ValueError(f"{name}: expected levels of at least 2, or None for continuous data, got {levels}")
    if x.dtype.kind == "u" and np.iinfo(x.dtype).max < levels:
        return
    ends = [(rows.min(), rows.max()) for rows in inspected(x)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if not np.issubdtype(x.dtype, np.integer) or low < 0 or high >= levels:
        raise ValueError(
            f"{name}: expected integers in 0..{levels - 1} for {levels} levels, got {x.dtype} from {low} to {high}: "
            "give the right levels, or none for continuous data"
        )


def _check_labels(name: str, label: NDArray[Any] | None, num_classes: int | None, count: int) -> None:
    if label is None or num_classes is None:
        if label is not None or num_classes is not None:
            missing = "label" if label is None else "num_classes"
            raise ValueError(f"{name}: expected label and num_classes together, got no {missing}: give both or neither")
        return
    if label.dtype != np.int64 or label.shape != (count,):
        raise ValueError(
            f"{name}: expected labels of shape ({count},) in int64, got {label.shape} in {label.dtype}: "
            "give the number of its class for each item"
        )
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"{name}: expected labels in 0..{num_classes - 1}, got {label.min()} to {label.max()}: "
            "number the classes from 0"
        )
