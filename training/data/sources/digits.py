"""The 8x8 handwritten digits of scikit-learn: a data set that needs no download."""

import numpy as np

from scorefield.training.data.dataset import Dataset, Split, hold_out


def digits(split: Split = "train") -> Dataset:
    """1797 images (1, 8, 8) of 17 levels in ten classes; 360 of them are the test split.

    The test split is every fifth image in order of class, and so a fifth of each class.
    """
    from sklearn.datasets import load_digits  # here, because the import takes a second

    bunch = load_digits()
    order = np.argsort(bunch.target, kind="stable")
    index = np.sort(order[hold_out(len(order), split, every=5)])
    x = bunch.images[index, None].astype(np.uint8)
    return Dataset("digits", split, x, levels=17, label=bunch.target[index].astype(np.int64), num_classes=10)
