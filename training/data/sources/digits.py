"""The 8x8 handwritten digits of scikit-learn: a data set that needs no download."""

import functools

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split, hold_out


def digits(split: Split = "train") -> Dataset:
    """1797 images (1, 8, 8) of 17 levels in ten classes; 360 of them are the test split.

    The test split is every fifth image in order of class, and so a fifth of each class.
    """
    images, classes = _read()
    order = np.argsort(classes, kind="stable")
    index = np.sort(order[hold_out(len(order), split, every=5)])
    return Dataset("digits", split, images[index], levels=17, label=classes[index], num_classes=10)


@functools.cache  # of a text file
def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images (N, 1, 8, 8) and their classes (N,)."""
    from sklearn.datasets import load_digits  # here, because the import takes a second

    bunch = load_digits()
    return bunch.images[:, None].astype(np.uint8), bunch.target.astype(np.int64)
