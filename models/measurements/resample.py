"""Down-sampling: pooling, antialiased bicubic, and any kernel.

Rows and columns are weighted by two small matrices,  y = W_rows x W_columns^T,  so the adjoint is exact and the
singular values are the products of theirs.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.blur import Blur
from scorefield.models.measurements.constants import Constant
from scorefield.models.measurements.shapes import as_image
from scorefield.models.measurements.sides import weigh_sides
from scorefield.models.measurements.svd import SVD, is_small, of_matrix

Weights = Callable[[int, int], Tensor]  # length, smaller length -> (smaller length, length)


class Resample(Linear):
    """y = W_rows x W_columns^T of each channel, of ceil(H / factor) x ceil(W / factor) pixels.

    Args:
        shape: of images, (C, H, W).
        factor: of the sides, 1 or more. A side that it does not divide gets a slightly smaller factor.
        weights: of a side: its length and the smaller one to a matrix (smaller, length).

    Raises:
        ValueError: for samples that are no images, or a factor that is no whole number from 1 to the smaller side.
    """

    def __init__(self, shape: tuple[int, ...], factor: int, weights: Weights) -> None:
        super().__init__(shape)
        self._channels, *sides = as_image(shape, "down-sampling")
        self._sides = small_sides(sides, factor)
        rows, columns = (weights(side, small) for side, small in zip(sides, self._sides, strict=True))
        self._rows, self._columns = Constant(rows), Constant(columns)

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (self._channels, *self._sides)

    def measure(self, x0: Tensor) -> Tensor:
        return weigh_sides(self._rows.beside(x0), x0, self._columns.beside(x0))

    def transpose(self, y: Tensor) -> Tensor:
        return weigh_sides(self._rows.beside(y).mT, y, self._columns.beside(y).mT)

    def svd(self) -> SVD:
        return self._svd

    @functools.cached_property
    def _svd(self) -> SVD:
        (u1, s1, v1), (u2, s2, v2) = (
            torch.linalg.svd(side.exact, full_matrices=False) for side in (self._rows, self._columns)
        )
        of_u, of_v = (Constant(u1), Constant(u2)), (Constant(v1), Constant(v2))
        spectrum = (-1, *self.measured_shape)

        def to(sides: tuple[Constant, Constant], x: Tensor, transposed: bool) -> Tensor:
            rows, columns = (side.beside(x) for side in sides)
            return weigh_sides(rows.mT, x, columns.mT) if transposed else weigh_sides(rows, x, columns)

        return SVD(
            torch.outer(s1, s2).flatten().repeat(self._channels),
            lambda x: to(of_v, x, False).flatten(1),
            lambda c: to(of_v, c.reshape(spectrum), True),
            lambda y: to(of_u, y, True).flatten(1),
            lambda c: to(of_u, c.reshape(spectrum), False),
        )


class Pool(Resample):
    """The mean of each cell of factor x factor pixels, by area where the factor does not divide a side."""

    def __init__(self, shape: tuple[int, ...], factor: int) -> None:
        super().__init__(shape, factor, box_weights)


class Bicubic(Resample):
    """Antialiased bicubic down-sampling (Keys 1981, a = -1/2), as that of pictures."""

    def __init__(self, shape: tuple[int, ...], factor: int) -> None:
        super().__init__(shape, factor, bicubic_weights)


class Downsample(Linear):
    """y = each factor-th pixel of  kernel * x0,  from the middle of the first cell on. The borders reflect.

    Args:
        shape: of images, (C, H, W).
        factor: of the sides.
        kernel: (h, w).

    Raises:
        ValueError: for samples that are no images, a bad factor or a kernel that is no image.
    """

    def __init__(self, shape: tuple[int, ...], factor: int, kernel: Tensor) -> None:
        super().__init__(shape)
        self._blur = Blur(shape, kernel, boundary="reflect")
        self._channels, *sides = as_image(shape, "down-sampling")
        self._sides, self._step = small_sides(sides, factor), int(factor)
        self._start = tuple(min((factor - 1) // 2, (side - 1) % factor) for side in sides)

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (self._channels, *self._sides)

    def measure(self, x0: Tensor) -> Tensor:
        top, left = self._start
        return self._blur.measure(x0)[..., top :: self._step, left :: self._step]

    def transpose(self, y: Tensor) -> Tensor:
        top, left = self._start
        x = y.new_zeros(len(y), *self.shape)
        x[..., top :: self._step, left :: self._step] = y
        return self._blur.transpose(x)

    def svd(self) -> SVD | None:
        return self._svd

    @functools.cached_property
    def _svd(self) -> SVD | None:
        shape, measured = (1, *self.shape[1:]), (1, *self._sides)
        if not is_small(shape, measured):
            return None
        channel = Downsample(shape, self._step, self._blur.kernel)
        return of_matrix(channel.matrix(), self.shape, self.measured_shape, copies=self._channels)


def small_sides(sides: list[int], factor: int) -> tuple[int, ...]:
    """The sides of the smaller image.

    Raises:
        ValueError: for a factor that is no whole number from 1 to the smaller side.
    """
    if factor != int(factor) or not 1 <= factor <= min(sides):
        raise ValueError(
            f"expected a whole factor from 1 to {min(sides)} for {sides[0]} x {sides[1]} pixels, got {factor}: "
            "give a smaller one"
        )
    return tuple(math.ceil(side / factor) for side in sides)


def box_weights(length: int, small: int) -> Tensor:
    """The share of each pixel in each cell, (small, length)."""
    edges = torch.arange(small + 1, dtype=torch.float64) * length / small
    pixels = torch.arange(length, dtype=torch.float64)
    ends = torch.minimum(pixels + 1, edges[1:, None])
    return _normalised((ends - torch.maximum(pixels, edges[:-1, None])).clamp(min=0))


def bicubic_weights(length: int, small: int) -> Tensor:
    """Keys' cubic kernel, as wide as the cells, (small, length)."""
    x = _distances(length, small).abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return _normalised(torch.where(x < 1, near, torch.where(x < 2, far, 0.0)))


def gaussian_weights(length: int, small: int, std: float) -> Tensor:
    """A Gaussian around the centre of each cell, with a standard deviation in cells, (small, length)."""
    return _normalised((-_distances(length, small).square() / (2 * std**2)).exp())


def _distances(length: int, small: int) -> Tensor:
    """From the centre of each cell to each pixel, in cells, (small, length)."""
    scale = length / small
    cells, pixels = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (small, length))
    return (pixels - scale * cells[:, None]) / scale


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True)
