"""Blur: each channel convolved with a kernel."""

import functools

import torch
from torch import Tensor

from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.constants import Constant
from scorefield.models.measurements.hartley import PIXELS, filtered, hartley
from scorefield.models.measurements.shapes import as_image
from scorefield.models.measurements.sides import weigh_sides
from scorefield.models.measurements.svd import SVD, is_small, of_matrix

BOUNDARIES = ("circular", "reflect")


class Blur(Linear):
    """y = kernel * x0 of each channel, by FFT. The kernel's centre is its pixel (h // 2, w // 2).

    Args:
        shape: of images, (C, H, W).
        kernel: (h, w), of any size.
        boundary: "circular", where an image goes on at its other side, or "reflect", where it goes on mirrored at the
            centres of its last pixels.

    Raises:
        ValueError: for samples that are no images, a kernel that is none, or another boundary.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor, boundary: str = "circular") -> None:
        super().__init__(shape)
        self._channels, *sides = as_image(shape, "blur")
        if kernel.ndim != 2 or kernel.numel() == 0 or not kernel.is_floating_point() or not kernel.any():
            raise ValueError(
                f"expected a kernel (h, w) of real numbers, not all 0, got {tuple(kernel.shape)} of {kernel.dtype}: "
                "give such a tensor"
            )
        if boundary not in BOUNDARIES:
            raise ValueError(f"expected a boundary of {' or '.join(BOUNDARIES)}, got {boundary!r}: give one of them")
        self.kernel, self.boundary = kernel.detach().double().cpu(), boundary
        self._pads: tuple[Constant, Constant] | None = None
        self._starts = (0, 0)
        if boundary == "reflect":  # so that the circular convolution of the larger image never meets its other side
            self._starts = _before(kernel.shape[0]), _before(kernel.shape[1])
            after = (k // 2 for k in kernel.shape)
            rows, columns = (
                _mirrored(n, *pad) for n, pad in zip(sides, zip(self._starts, after, strict=True), strict=True)
            )
            self._pads = Constant(rows), Constant(columns)
            sides = [len(rows), len(columns)]
        self._sides = tuple(sides)
        self._transfer = Constant(torch.fft.fftn(_around_zero(self.kernel, self._sides), dim=PIXELS))

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return self.shape

    def measure(self, x0: Tensor) -> Tensor:
        if self._pads is None:
            return filtered(x0, self._transfer.beside(x0))
        rows, columns = (pad.beside(x0) for pad in self._pads)
        y = filtered(weigh_sides(rows, x0, columns), self._transfer.beside(x0))
        return y[self._inside]

    def transpose(self, y: Tensor) -> Tensor:
        transfer = self._transfer.beside(y).conj()
        if self._pads is None:
            return filtered(y, transfer)
        rows, columns = (pad.beside(y) for pad in self._pads)
        x = y.new_zeros(*y.shape[:2], *self._sides)
        x[self._inside] = y
        return weigh_sides(rows.mT, filtered(x, transfer), columns.mT)

    def svd(self) -> SVD | None:
        return self._svd

    @property
    def _inside(self) -> tuple[slice, ...]:
        rows, columns = (slice(a, a + n) for a, n in zip(self._starts, self.shape[1:], strict=True))
        return slice(None), slice(None), rows, columns

    @functools.cached_property
    def _svd(self) -> SVD | None:
        if self.boundary == "circular":
            return self._fourier_svd()
        channel = (1, *self.shape[1:])
        if not is_small(channel, channel):
            return None
        one = Blur(channel, self.kernel, self.boundary)
        return of_matrix(one.matrix(), self.shape, self.shape, copies=self._channels)

    def _fourier_svd(self) -> SVD:
        """V^T is the Hartley transform, s the moduli of the transfer function, and U its phases with V."""
        transfer = self._transfer.exact
        s = transfer.abs()
        s = torch.where(s > 1e-14 * s.max(), s, 0.0)
        phase = Constant(torch.where(s > 0, transfer / torch.where(s > 0, s, 1.0), 1.0))
        spectrum = (-1, *self.shape)

        return SVD(
            s.flatten().repeat(self._channels),
            lambda x: hartley(x, PIXELS).flatten(1),
            lambda c: hartley(c.reshape(spectrum), PIXELS),
            lambda y: hartley(filtered(y, phase.beside(y).conj()), PIXELS).flatten(1),
            lambda c: filtered(hartley(c.reshape(spectrum), PIXELS), phase.beside(c)),
        )


def _around_zero(kernel: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The kernel as an image whose first pixel is the kernel's centre. A larger kernel goes round."""
    rows, columns = ((torch.arange(k) - k // 2) % n for k, n in zip(kernel.shape, sides, strict=True))
    image = torch.zeros(sides, dtype=kernel.dtype)
    return image.index_put((rows[:, None], columns), kernel, accumulate=True)


def _before(length: int) -> int:
    """The pixels of a kernel's side after its centre, which reach before the image."""
    return length - 1 - length // 2


def _mirrored(length: int, before: int, after: int) -> Tensor:
    """The matrix (before + length + after, length) that continues a line by its mirror images."""
    places = torch.arange(-before, length + after)
    period = max(2 * (length - 1), 1)
    places = places % period
    places = torch.minimum(places, (period - places) % period) if length > 1 else places * 0
    return torch.nn.functional.one_hot(places, length).double()
