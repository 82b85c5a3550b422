"""Kernels of blur, (h, w) in float64, whose values sum to one."""

import math
from pathlib import Path

import torch
from torch import Tensor

from scorefield.models.measurements.files import read_array


def gaussian(std: float, size: int | None = None) -> Tensor:
    """A Gaussian.

    Args:
        std: standard deviation in pixels.
        size: the side in pixels; None for 4 standard deviations to each side.

    Raises:
        ValueError: for a std that is not above 0.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"expected a std above 0 pixels for a Gaussian kernel, got {std}: write std=3.0")
    size = 2 * math.ceil(4 * std) + 1 if size is None else _side(size)
    line = (-(torch.arange(size, dtype=torch.float64) - size // 2).square() / (2 * std**2)).exp()
    return _normalised(torch.outer(line, line))


def box(size: int) -> Tensor:
    """The mean of size x size pixels.

    Raises:
        ValueError: for a size below 1.
    """
    return torch.full((_side(size), _side(size)), 1 / size**2, dtype=torch.float64)


def motion(length: float, angle: float = 0.0) -> Tensor:
    """A straight line, as of a camera that moves while the picture is taken.

    Args:
        length: in pixels.
        angle: in degrees, against the clock from the horizontal.

    Raises:
        ValueError: for a length that is not above 0.
    """
    if not 0 < length < math.inf:
        raise ValueError(f"expected a length above 0 pixels for a motion kernel, got {length}: write length=9")
    count = max(16 * math.ceil(length), 1)
    along = ((torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5) * length
    turn = math.radians(angle)
    radius = math.ceil(length / 2)
    pixels = torch.arange(-radius, radius + 1, dtype=torch.float64)
    rows, columns = (
        (1 - (pixels[:, None] - place).abs()).clamp(min=0)  # each point is shared by the pixels beside it
        for place in (-math.sin(turn) * along, math.cos(turn) * along)
    )
    return _normalised(rows @ columns.T)


def read_kernel(path: str | Path) -> Tensor:
    """The kernel of a file: an array `.npy` as it is, or a picture divided by its sum.

    Raises:
        ValueError: for a file that cannot be read, or a kernel that is no image or all zero.
    """
    kernel, picture = read_array(path)
    if kernel.ndim != 2 or not kernel.any():
        raise ValueError(
            f"expected a kernel (h, w), not all 0, in {path}, got {tuple(kernel.shape)}: save such an array"
        )
    return _normalised(kernel) if picture else kernel


def _side(size: int) -> int:
    if size != int(size) or size < 1:
        raise ValueError(f"expected a whole size of 1 pixel or more for a kernel, got {size}: write size=9")
    return int(size)


def _normalised(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()
