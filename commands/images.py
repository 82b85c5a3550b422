"""The images of a data set that a command uses."""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.commands.run import stored_tensor
from scorefield.training.data import Dataset
from scorefield.training.data.dataset import random_rows
from scorefield.training.distributed.ranks import Ranks


@dataclass(frozen=True)
class Images:
    """All images of a data set in their order, or some at random.

    Args:
        data: the images, with their labels.
        index: their places in the data set, (N,).
        described: what they are, for a report.
    """

    data: Dataset
    index: NDArray[np.int64]
    described: str

    @classmethod
    def of(cls, dataset: Dataset, num: int | None, seed: int) -> "Images":
        """All images, or `num` that the seed chooses (`Dataset.subset`). A line on stderr says if they lack classes."""
        part = dataset.subset(num, seed)
        if part is dataset:
            return cls(part, np.arange(len(part)), "all")
        described = f"{num} of {len(dataset)}, at random (seed {seed})"
        if part.label is not None and dataset.label is not None:
            some, every = (len(np.unique(label)) for label in (part.label, dataset.label))
            if some < every and Ranks.current().first:
                print(f"{dataset.split} images, {described}: {some} of {every} classes", file=sys.stderr, flush=True)
        return cls(part, random_rows(len(dataset), num, seed), described)

    @property
    def stored(self) -> Tensor:
        """The stored values, (N, *D)."""
        return stored_tensor(self.data)

    @property
    def label(self) -> Tensor | None:
        """The classes, (N,), where the data set has them."""
        return None if self.data.label is None else torch.as_tensor(self.data.label)
