"""MNIST's digits on a canvas, with a caption, boxes and a map of what is where."""

import os

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.dataset import Dataset, Split
from scorefield.training.data.sources.mnist import mnist

RELATIONS = ("left of", "above")
CROP = 24  # of MNIST's 28 pixels, in which nearly all ink lies
SMALLEST = 16  # pixels of a side
INK = 64  # of 255: from here on a pixel is of the digit and not of its edge


def canvas(
    root: str | os.PathLike[str] | None = None,
    split: Split = "train",
    *,
    size: int = 32,
    digits: int = 2,
    count: int = 20_000,
    seed: int = 0,
) -> Dataset:
    """Two digits of MNIST on a canvas (1, size, size), with captions such as "3 left of 5" or "7 above 2".

    Digits, relation and places are drawn from the seed, uniformly and the same at every call; those of the two splits
    come from MNIST's two splits. Each digit lies about the middle of its half of the canvas. The conditions are
    `caption`; `boxes` (N, digits, 5), the class and the edges of the ink; and `map` (N, size, size), 0 for the
    background, 1 + d for a pixel of digit d.

    Args:
        root: the folder of the data sets, as for `mnist`.
        split: "train" or "test", a tenth as large.
        size: of the canvas, in pixels.
        digits: two; or one, as large as the canvas, whose caption is the digit, which is its class too.
        count: items of the training split.
        seed: of what is drawn.

    Raises:
        FileNotFoundError, ValueError: as `mnist`; or for other numbers.
    """
    if size < SMALLEST or digits not in (1, 2) or count < 10:
        raise ValueError(
            f"expected a size of at least {SMALLEST}, one or two digits, and a count of at least 10, got size={size}, "
            f"digits={digits}, count={count}: choose others"
        )
    source = mnist(root, split)
    assert source.label is not None
    count = count if split == "train" else count // 10
    # RandomState, whose stream NumPy has frozen: the same items under every version.
    random = np.random.RandomState([seed, split == "test"])
    rows = random.randint(len(source), size=(count, digits))
    above = random.randint(2, size=count) == 1
    kinds = source.label[rows]

    side = 7 * size // (16 if digits == 2 else 8)
    images, maps = np.zeros((2, count, size, size), np.uint8)
    boxes = np.zeros((count, digits, 5), np.float32)
    boxes[..., 0] = kinds
    for place in range(digits):
        tiles = resized(source.x[rows[:, place], 0], side)
        corners = _corners(random, above, place, digits, size, side)
        for i, (top, left) in enumerate(corners.tolist()):
            images[i, top : top + side, left : left + side] = tiles[i]
            maps[i, top : top + side, left : left + side] = np.where(tiles[i] < INK, 0, 1 + kinds[i, place])
        boxes[:, place, 1:] = (edges(tiles >= INK) + np.tile(corners[:, ::-1], 2)) / size
    words = [_caption(kind, RELATIONS[int(up)]) for kind, up in zip(kinds.tolist(), above, strict=True)]
    cond = {"caption": np.array(words), "boxes": boxes, "map": maps}
    label = kinds[:, 0] if digits == 1 else None
    return Dataset("canvas", split, images[:, None], 256, label, 10 if digits == 1 else None, cond=cond)


def _corners(
    random: np.random.RandomState, above: NDArray[np.bool_], place: int, digits: int, size: int, side: int
) -> NDArray[np.int64]:
    """The top left corners (down, right) (N, 2) of a digit, drawn about the middle of its part of the canvas."""
    part, count = size // digits, len(above)
    along = part * place + random.randint(part - side + 1, size=count)  # never beyond its part
    across = (size - side) // 2 + random.randint(-(size // 16), size // 16 + 1, size=count)
    return np.where(above[:, None], np.stack([along, across], 1), np.stack([across, along], 1))


def _caption(kinds: list[int], relation: str) -> str:
    return f" {relation} ".join(map(str, kinds))


def resized(x: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle 24 x 24 pixels of images (N, H, W), resized to (N, side, side) by the areas that pixels share."""
    top, left = ((edge - CROP) // 2 for edge in x.shape[1:])
    inner = x[:, top : top + CROP, left : left + CROP].astype(np.float64)
    ends, starts = np.arange(1, side + 1) * CROP, np.arange(side) * CROP
    pixels = np.arange(CROP) * side
    # Integers, so that the result does not depend on the order of the sums.
    shared = np.minimum(ends[:, None], pixels + side) - np.maximum(starts[:, None], pixels)
    shared = np.maximum(shared, 0).astype(np.float64)
    tiles: NDArray[np.float64] = np.rint(shared @ inner @ shared.T / CROP**2)
    return tiles.astype(np.uint8)


def edges(ink: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N, 4), the edges left, top, right, bottom of what is true in (N, h, w); all of it where nothing is."""
    sides = []
    for axis in (1, 2):  # over rows, for left and right
        line: NDArray[np.bool_] = ink.max(axis)
        line[line.max(1) == 0] = True
        sides.append((line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = sides
    return np.stack([left, top, right, bottom], 1)
