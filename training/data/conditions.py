"""Further rows of the items of a data set, by name, that a denoiser may be conditioned on: captions, boxes, maps.

- `caption`: text, (N,) of NumPy's str.
- `boxes`: float32 (N, K, 5): class, x0, y0, x1, y1, in 0 .. 1 of the width and the height; class -1 for no box.
- `map`: integers (N, h, w), the class of each pixel.
- any other name: finite numbers (N, ...).
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Conditions = Mapping[str, NDArray[Any]]

PICTURES = ("map", "low", "masked", "mask", "concat")  # whose last axis is the width of the image
SIDES = re.compile(r"\b(left|right)(wards?|most)?\b", re.IGNORECASE)


def check_conditions(name: str, cond: Conditions, count: int) -> None:
    """Raises ValueError unless each array has `count` rows of the type that its name asks for."""
    for key, array in cond.items():
        if array.ndim < 1 or len(array) != count:
            rows = len(array) if array.ndim else "no"
            raise ValueError(
                f"{name}: expected {count} rows of {key!r}, one for each item, got {rows}: give a row for each item"
            )
        expected = _expected(key, array)
        if expected:
            raise ValueError(f"{name}: expected {key!r} as {expected}, got {array.shape} in {array.dtype}: convert it")
        if array.dtype.kind == "f" and (bad := sum(int(np.sum(~np.isfinite(rows))) for rows in _chunks(array))):
            raise ValueError(f"{name}: expected finite {key!r}, got {bad} NaN or infinite entries: remove those items")
    if "boxes" in cond:
        _check_boxes(name, cond["boxes"])
    if "map" in cond and (low := int(cond["map"].min(initial=0))) < 0:
        raise ValueError(f"{name}: expected classes from 0 in 'map', got {low}: number the classes from 0")


def _expected(key: str, array: NDArray[Any]) -> str:
    """What an array of this name must be, if it is not."""
    if key == "caption":
        return "" if array.dtype.kind == "U" and array.ndim == 1 else "text (N,) of NumPy's str"
    if key == "boxes":
        fits = array.dtype == np.float32 and array.ndim == 3 and array.shape[2] == 5
        return "" if fits else "float32 (N, K, 5): class, x0, y0, x1, y1"
    if key == "map":
        return "" if array.dtype.kind in "iu" and array.ndim == 3 else "integers (N, height, width)"
    return "" if array.dtype.kind in "biuf" else "numbers (N, ...)"


def _check_boxes(name: str, boxes: NDArray[Any]) -> None:
    kind, corners = boxes[..., 0], boxes[..., 1:]
    there = kind != -1
    if (kind != np.rint(kind)).any() or (kind < -1).any():
        raise ValueError(
            f"{name}: expected classes of boxes as integers from 0, or -1 for no box, got "
            f"{kind[(kind != np.rint(kind)) | (kind < -1)][0]:g}: number the classes from 0"
        )
    inside = (corners >= 0).all(-1) & (corners <= 1).all(-1)
    ordered = (corners[..., :2] <= corners[..., 2:]).all(-1)
    if (wrong := there & ~(inside & ordered)).any():
        shown = ", ".join(f"{value:g}" for value in corners[wrong][0])
        raise ValueError(
            f"{name}: expected boxes with 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1, got {shown}: divide the pixels "
            "by width and height"
        )


def update(digest: "hashlib._Hash", cond: Conditions) -> None:
    """Adds the names and the values of the arrays to a hash. Text counts by its characters, not by the array's type."""
    for key in sorted(cond):
        array = cond[key]
        kind = "text" if array.dtype.kind == "U" else array.dtype.str
        digest.update(f"{key} {kind} {array.shape} ".encode())
        for rows in _chunks(array):
            if array.dtype.kind == "U":
                digest.update("".join(f"{len(text)} {text}" for text in rows.tolist()).encode())
            else:
                digest.update(np.ascontiguousarray(rows).data)


def _chunks(array: NDArray[Any], size: int = 1 << 14) -> Iterator[NDArray[Any]]:
    for first in range(0, len(array), size):
        yield array[first : first + size]


def says_a_side(captions: NDArray[np.str_]) -> str:
    """The first caption that says "left" or "right", which a mirrored image makes wrong; "" if none does."""
    return next((text for text in captions.tolist() if SIDES.search(text)), "")


def mirrored(key: str, value: Tensor, flipped: Tensor) -> Tensor:
    """The rows of a condition (B, ...) with left and right swapped where `flipped (B,)`; text and vectors stay."""
    if key == "boxes":
        x0, x1 = 1 - value[..., 3], 1 - value[..., 1]
        other = torch.stack([value[..., 0], x0, value[..., 2], x1, value[..., 4]], -1)
        turned = flipped[:, None] & (value[..., 0] >= 0)
        return torch.where(turned[..., None], other, value)
    if key in PICTURES:
        return torch.where(flipped.view(-1, *[1] * (value.ndim - 1)), value.flip(-1), value)
    return value
