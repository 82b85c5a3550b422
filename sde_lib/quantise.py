"""Between integers k = 0 .. levels - 1 and the model's values: level k is a cell of width (high - low) / levels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def cell_width(levels: int, *, low: float = -1.0, high: float = 1.0) -> float:
    """The width of a cell in the model's values, (high - low) / levels."""
    return (high - low) / levels


def cell_to_value(position: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """X = low + (high - low) / levels * position,  position = k + u with u in [0, 1) the place in the cell of k.

    The position is a tensor of floats of any shape; x has its shape and dtype. Nothing is checked.
    """
    return low + cell_width(levels, low=low, high=high) * position


def cell_centres(k: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The centres of the integers' cells, u = 1/2: (B, *D) in float32.

    Raises:
        ValueError: if the integers are not within 0 .. levels - 1.
    """
    return cell_to_value(_checked(k, levels) + 0.5, levels, low=low, high=high)


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

    Returns:
        x (B, *D) in float32, and log_det = D log((high - low) / levels) in nats, a scalar.

    Raises:
        ValueError: if the integers are not within 0 .. levels - 1.
    """
    k = _checked(images, levels)
    log_det = torch.tensor(math.prod(images.shape[1:]) * math.log(cell_width(levels, low=low, high=high)))
    return cell_to_value(k + uniform(k), levels, low=low, high=high), log_det


def quantise(x: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The integers whose cells contain `x`; beyond the range, the nearest. Inverts `dequantise`. Same shape, int64."""
    return ((x - low) * (levels / (high - low))).floor().clamp(0, levels - 1).long()


def _checked(images: Tensor, levels: int) -> Tensor:
    """The integers in float32, once they are known to be within 0 .. levels - 1."""
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
    return images.float()
