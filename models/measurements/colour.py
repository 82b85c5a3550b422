"""Measurements of an image's colours."""

import torch
from torch import Tensor

from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.constants import Constant
from scorefield.models.measurements.shapes import as_image
from scorefield.models.measurements.svd import SVD, of_equal_values

BT601 = (0.299, 0.587, 0.114)  # luma of red, green and blue


class Grey(Linear):
    """y = sum_c weights_c x0_c of each pixel, (1, H, W).

    Args:
        shape: of images, (C, H, W).
        weights: one for each channel; None for the luma of ITU-R BT.601 for three channels, else their mean.

    Raises:
        ValueError: for samples that are no images, or another number of weights.
    """

    def __init__(self, shape: tuple[int, ...], weights: tuple[float, ...] | None = None) -> None:
        super().__init__(shape)
        channels, self._height, self._width = as_image(shape, "grey")
        if weights is None:
            weights = BT601 if channels == 3 else (1 / channels,) * channels
        if len(weights) != channels or not any(weights):
            raise ValueError(f"expected {channels} weights, not all 0, got {tuple(weights)}: give one for each channel")
        self._weights = Constant(torch.tensor(weights, dtype=torch.float64).reshape(-1, 1, 1))

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (1, self._height, self._width)

    def measure(self, x0: Tensor) -> Tensor:
        return (self._weights.beside(x0) * x0).sum(1, keepdim=True)

    def transpose(self, y: Tensor) -> Tensor:
        return self._weights.beside(y) * y

    def svd(self) -> SVD:
        length = float(self._weights.exact.norm())
        return of_equal_values(length, self.size, self.shape, self.measured_shape, self.measure, self.transpose)
