"""Masks: some values of a sample are measured, and the others are hidden."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.constants import Constant
from scorefield.models.measurements.files import read_array
from scorefield.models.measurements.shapes import as_image, spatial
from scorefield.models.measurements.svd import SVD, of_equal_values

SIDES = ("left", "right", "top", "bottom")


class Mask(Linear):
    """y = the known values of x0, in the order of x0.flatten(). Hidden values, NaN too, have no influence.

    Args:
        known: true where a value is measured: of the sample's shape, or (H, W) for all channels of an image.
        shape: of one sample, *D.
        hidden: the value of hidden pixels in a picture, as the middle of the data's range.

    Raises:
        ValueError: for a mask of another shape, or one that hides everything.
    """

    def __init__(self, known: Tensor, shape: tuple[int, ...], hidden: float = 0.0) -> None:
        super().__init__(shape)
        if tuple(known.shape) not in (self.shape, spatial(self.shape)):
            raise ValueError(
                f"expected a mask of shape {' or '.join(map(str, dict.fromkeys((spatial(self.shape), self.shape))))}, "
                f"got {tuple(known.shape)}: resize the mask to the data"
            )
        known = known.bool().expand(self.shape)
        if not known.any():
            raise ValueError(f"expected a mask with a known value, got {tuple(known.shape)} hidden values: hide less")
        self.hidden = float(hidden)
        self._known = Constant(known)
        self._indices = Constant(known.flatten().nonzero()[:, 0])

    @property
    def known(self) -> Tensor:
        """True where a value is measured, *D."""
        return self._known.exact

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (len(self._indices.exact),)

    def measure(self, x0: Tensor) -> Tensor:
        return x0.flatten(1)[:, self._indices.beside(x0)]

    def transpose(self, y: Tensor) -> Tensor:
        return self._filled(y, 0.0)

    def svd(self) -> SVD:
        return of_equal_values(1.0, self.size, self.shape, self.measured_shape, self.measure, self.transpose)

    def picture(self, y: Tensor) -> Tensor | None:
        return self._filled(y, self.hidden) if len(self.shape) == 3 and self.shape[0] in (1, 3) else None

    def _filled(self, y: Tensor, value: float) -> Tensor:
        x = y.new_full((len(y), math.prod(self.shape)), value)
        return x.index_copy(1, self._indices.beside(y), y).reshape(-1, *self.shape)


def box(shape: tuple[int, ...], corners: tuple[int, ...] | None = None) -> Tensor:
    """A mask (H, W) that hides the rows top .. bottom - 1 and the columns left .. right - 1.

    Args:
        shape: of images, (C, H, W).
        corners: (top, left, bottom, right); None hides a centred box of half the side.

    Raises:
        ValueError: for samples that are no images, and a box that is not inside of them.
    """
    _, height, width = as_image(shape, "a box")
    if corners is None:
        corners = (height // 4, width // 4, height // 4 + height // 2, width // 4 + width // 2)
    whole = isinstance(corners, Sequence) and len(corners) == 4 and all(isinstance(c, int) for c in corners)
    top, left, bottom, right = corners if whole else (0, 0, 0, 0)
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            f"expected a box (top, left, bottom, right) inside of {height} x {width} pixels, got {corners}: "
            f"write whole numbers, as box=(0,0,{max(height // 2, 1)},{width})"
        )
    known = torch.ones(height, width, dtype=torch.bool)
    known[top:bottom, left:right] = False
    return known


def half(shape: tuple[int, ...], side: str = "right") -> Tensor:
    """A mask that hides the half at a side: left, right, top or bottom. Of vectors left is the first half.

    Raises:
        ValueError: for another side, or top and bottom of vectors.
    """
    lengths = spatial(shape)
    sides = SIDES if len(lengths) > 1 else SIDES[:2]
    if side not in sides:
        raise ValueError(
            f"expected a side of {', '.join(sides)} for samples of shape {tuple(shape)}, got {side!r}: write side=right"
        )
    axis = -1 if side in ("left", "right") else -2
    length = lengths[axis]
    after = torch.arange(length) >= length // 2
    line = after if side in ("left", "top") else ~after
    return (line if axis == -1 else line[:, None]).expand(lengths).clone()


def random(shape: tuple[int, ...], share: float, seed: int = 0) -> Tensor:
    """A mask that measures a share of the pixels, drawn once. All channels of a pixel share its fate.

    Args:
        shape: of one sample.
        share: of the measured pixels, above 0 and at most 1; at least one pixel is measured.
        seed: of the draw.

    Raises:
        ValueError: for another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"expected a share of measured values above 0 and at most 1, got {share}: write share=0.3")
    lengths = spatial(shape)
    size = math.prod(lengths)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    known = torch.zeros(size, dtype=torch.bool)
    known[order[: max(round(share * size), 1)]] = True
    return known.reshape(lengths)


def border(shape: tuple[int, ...], width: int) -> Tensor:
    """A mask (H, W) that hides a border of `width` pixels: what is inside is to be continued outwards.

    Raises:
        ValueError: for samples that are no images, and a border that hides all.
    """
    _, *sides = as_image(shape, "outpainting")
    if not (width > 0 and 2 * width < min(sides)):
        raise ValueError(
            f"expected a border of at least 1 pixel that leaves some of {sides[0]} x {sides[1]}, got {width}: "
            f"write border={max(min(sides) // 4, 1)}"
        )
    known = torch.zeros(*sides, dtype=torch.bool)
    known[width:-width, width:-width] = True
    return known


def read_mask(path: str | Path) -> Tensor:
    """A mask of a file: a picture whose white is unknown, or an array `.npy` that is not zero where it is unknown.

    Raises:
        ValueError: for a file that cannot be read.
    """
    array, picture = read_array(path)
    return array < 0.5 if picture else array == 0
