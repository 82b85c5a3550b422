"""A data set with every kind of conditioning: a bright square of one of three levels, left or right."""

import numpy as np

from scorefield.training.data import Dataset

SIDES = ("left", "right")


def scenes(split: str = "train", count: int = 60) -> Dataset:
    rng = np.random.default_rng(0 if split == "train" else 1)
    kind, side = rng.integers(0, 3, count), rng.integers(0, 2, count)
    x = rng.integers(0, 40, (count, 1, 8, 8)).astype(np.uint8)
    where = np.zeros((count, 8, 8), np.int64)
    boxes = np.zeros((count, 1, 5), np.float32)
    for i in range(count):
        left = 4 * int(side[i]) + 1
        x[i, 0, 3:6, left : left + 3] = 120 + 60 * kind[i]
        where[i, 3:6, left : left + 3] = 1 + kind[i]
        boxes[i, 0] = (kind[i], left / 8, 3 / 8, (left + 3) / 8, 6 / 8)
    caption = np.array([f"square {kind[i]} {SIDES[side[i]]}" for i in range(count)])
    return Dataset(
        "scenes",
        "train" if split == "train" else "test",
        x,
        256,
        kind.astype(np.int64),
        3,
        cond={"caption": caption, "boxes": boxes, "map": where},
    )
