"""Measurements that are not linear: magnitudes, clipping, gamma and quantisation."""

import math

import torch
from torch import Tensor

from scorefield.models.measurements.base import Measurement
from scorefield.models.measurements.hartley import PIXELS
from scorefield.models.measurements.shapes import spatial
from scorefield.sde_lib.broadcast import precise


class Magnitude(Measurement):
    """y = |F(x0 - low)|, of the unitary Fourier transform of the samples with zeros around them: phase retrieval.

    Zeros around a sample take the value `low`, as black. The gradient of a magnitude of 0 is 0.

    Args:
        shape: of images (C, H, W), each channel by itself, or of vectors (n,).
        oversample: the sides of the transform over those of the sample, 1 or more; from 2 on the magnitudes decide
            most images up to a turn by 180 degrees.
        low: the least value of the data.
        high: the greatest.

    Raises:
        ValueError: for other shapes, or an oversample below 1.
    """

    def __init__(self, shape: tuple[int, ...], oversample: float = 2.0, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(shape)
        if len(shape) not in (1, 3):
            raise ValueError(f"expected images (C, H, W) or vectors (n,) for phase, got {tuple(shape)}: reshape them")
        if not 1 <= oversample < math.inf:
            raise ValueError(f"expected an oversample of 1 or more, got {oversample}: write phase:oversample=2")
        self._low, self._high = _range(low, high)
        self._sides = tuple(math.ceil(oversample * n) for n in spatial(self.shape))

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (*self.shape[: -len(self._sides)], *self._sides)

    def measure(self, x0: Tensor) -> Tensor:
        dims = PIXELS[-len(self._sides) :]
        transform = torch.fft.fftn(x0 - self._low, s=self._sides, dim=dims, norm="ortho")
        square = transform.real.square() + transform.imag.square()  # abs() rounds by the place in the batch
        return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)

    def picture(self, y: Tensor) -> Tensor | None:
        """The logarithms of the magnitudes, frequency 0 in the middle."""
        if len(self.shape) != 3:
            return None
        logs = torch.fft.fftshift(y.clamp(min=0).log1p(), dim=PIXELS)
        largest = logs.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
        return super().picture(self._low + (self._high - self._low) * logs / largest)


class Clip(Measurement):
    """y = x0 with `gain` times the contrast around the middle of the range, clipped to the range: high dynamic range.

    The gradient of clipped values is 0.

    Args:
        shape: of one sample, *D.
        gain: of the contrast, above 0.
        low: the least value of the data.
        high: the greatest.

    Raises:
        ValueError: for a gain that is not above 0.
    """

    def __init__(self, shape: tuple[int, ...], gain: float = 2.0, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(shape)
        if not 0 < gain < math.inf:
            raise ValueError(f"expected a gain above 0, got {gain}: write clip:gain=2")
        self._low, self._high = _range(low, high)
        self._gain = gain

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return self.shape

    def measure(self, x0: Tensor) -> Tensor:
        middle = (self._low + self._high) / 2
        return (middle + self._gain * (x0 - middle)).clamp(self._low, self._high)


class Gamma(Measurement):
    """y = low + (high - low) u^exponent,  u = (x0 - low) / (high - low) in [0, 1].

    Values outside of the range count as its ends, and u as at least 1e-6, so that the gradient is finite.

    Args:
        shape: of one sample, *D.
        exponent: above 0.
        low: the least value of the data.
        high: the greatest.

    Raises:
        ValueError: for an exponent that is not above 0.
    """

    def __init__(self, shape: tuple[int, ...], exponent: float = 2.2, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(shape)
        if not 0 < exponent < math.inf:
            raise ValueError(f"expected an exponent above 0, got {exponent}: write gamma:exponent=2.2")
        self._low, self._high = _range(low, high)
        self._exponent = exponent

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return self.shape

    def measure(self, x0: Tensor) -> Tensor:
        width = self._high - self._low
        u = ((x0 - self._low) / width).clamp(1e-6, 1.0)
        power = (precise(u) ** self._exponent).to(u)  # in float32 a power's rounding depends on its place in the batch
        return self._low + width * power


class Quantise(Measurement):
    """y = the nearest of `levels` values from low to high, the same distance apart.

    The gradient passes as if values were not rounded (straight through), and is 0 outside of the range.

    Args:
        shape: of one sample, *D.
        levels: 2 or more.
        low: the least value of the data.
        high: the greatest.

    Raises:
        ValueError: for fewer levels.
    """

    def __init__(self, shape: tuple[int, ...], levels: int = 4, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(shape)
        if levels != int(levels) or levels < 2:
            raise ValueError(f"expected 2 or more whole levels, got {levels}: write quantise:levels=4")
        self._low, self._high = _range(low, high)
        self._step = (self._high - self._low) / (levels - 1)

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return self.shape

    def measure(self, x0: Tensor) -> Tensor:
        inside = x0.clamp(self._low, self._high)
        rounded = self._low + self._step * ((inside - self._low) / self._step).round()
        return inside + (rounded - inside).detach()


def _range(low: float, high: float) -> tuple[float, float]:
    if not low < high:
        raise ValueError(f"expected a range of values low < high, got {low} and {high}: give that of the data")
    return float(low), float(high)
