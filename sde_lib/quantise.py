"""Between integers k = 0 .. levels - 1 and the model's values: level k is a cell of width (high - low) / levels."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import like, precise

LAST = 1 - 2**-24  # the largest place in a cell: that of float32 below 1
FLOATS = 4  # least width of a cell, in float32's spacing at the ends of the range


def cell_width(levels: int, *, low: float = -1.0, high: float = 1.0) -> float:
    """The width of a cell in the model's values, (high - low) / levels.

    Raises:
        ValueError: if the cells are too narrow for float32 to tell their values apart, or the range is empty.
    """
    width = (high - low) / levels
    if not width >= FLOATS * float(np.spacing(np.float32(max(abs(low), abs(high))))):
        raise ValueError(
            f"expected cells that float32 can tell apart, got {levels} from {low:g} to {high:g}: take low=-1, high=1, "
            "or fewer levels"
        )
    return width


def cell_to_value(position: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """X = low + (high - low) / levels * position,  position = k + u with u in [0, 1) the place in the cell of k.

    The position is a tensor of floats of any shape; x has its shape and dtype, and is rounded as that dtype is.
    """
    return low + cell_width(levels, low=low, high=high) * position


def place_in_cell(k: Tensor, u: Tensor | float, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The float32 number in the cell of k that is nearest to  low + (high - low) (k + u) / levels,  u in [0, 1].

    Rounding never leaves the cell: `quantise` gives k again, and x is below `high`. Differentiable by u. Same shape.
    """
    k = precise(k)
    x = cell_to_value(k + precise(u).clamp(max=LAST), levels, low=low, high=high).float()
    with torch.no_grad():
        place = _position(x, levels, low, high)
        above = (place >= k + 1) | (precise(x) >= min(high, float(np.float32(high))))
        ends = torch.where(above, -math.inf, math.inf).to(x)
        inside = torch.where(above | (place < k), torch.nextafter(x, ends), x)
    return x + (inside - x.detach()) if x.requires_grad else inside


def cell_centres(k: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The centres of the integers' cells, u = 1/2: (B, *D) in float32.

    Raises:
        ValueError: if the integers are not within 0 .. levels - 1.
    """
    return place_in_cell(_checked(k, levels), 0.5, levels, low=low, high=high)


def dequantise(
    images: Tensor,
    levels: int,
    *,
    low: float = -1.0,
    high: float = 1.0,
    uniform: Callable[[Tensor], Tensor] = torch.rand_like,
) -> tuple[Tensor, Tensor]:
    """Integers k in 0 .. levels - 1 as  x = low + (high - low) (k + u) / levels,  u uniform on [0, 1).

    By Jensen  log P(k) >= E_u log p(x) + log_det,  so bits/dim from it are an upper bound (Theis et al. 2016, Eq. 10).
    `quantise` gives k again, exactly.

    Returns:
        x (B, *D) in float32, and log_det = D log((high - low) / levels) in nats, a scalar in float64.

    Raises:
        ValueError: if the integers are not within 0 .. levels - 1.
    """
    k = _checked(images, levels)
    nats = math.prod(images.shape[1:]) * math.log(cell_width(levels, low=low, high=high))
    u = like(uniform(k.float()), k, "the uniform numbers")
    x = place_in_cell(k, u, levels, low=low, high=high)
    return x, torch.tensor(nats, dtype=torch.float64)


def quantise(x: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The integers whose cells contain `x`; beyond the range, the nearest. Inverts `dequantise`. Same shape, int64."""
    return _position(x, levels, low, high).floor().clamp(0, levels - 1).long()


def _position(x: Tensor, levels: int, low: float, high: float) -> Tensor:
    """K + u of values, in float64: the one formula by which a value belongs to a cell."""
    return (precise(x) - low) * (levels / (high - low))


def _checked(images: Tensor, levels: int) -> Tensor:
    """The integers as int64, once they are known to be within 0 .. levels - 1."""
    if images.is_floating_point() or images.is_complex():
        raise ValueError(
            f"expected integers 0 .. {levels - 1}, got {images.dtype}: continuous data needs no dequantisation"
        )
    images = images.long()  # torch has no min of uint16
    if images.numel() and (int(images.min()) < 0 or int(images.max()) >= levels):
        raise ValueError(
            f"expected integers 0 .. {levels - 1} for {levels} levels, got {int(images.min())} to {int(images.max())}: "
            "give the number of levels that the data has"
        )
    return images
