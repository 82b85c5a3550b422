"""Any matrix as a measurement."""

import functools
import math
from pathlib import Path

from torch import Tensor

from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.constants import Constant
from scorefield.models.measurements.files import read_array
from scorefield.models.measurements.svd import SVD, of_matrix, times


class Matrix(Linear):
    """y = A x0.flatten(), (m,).

    Args:
        a: the matrix, (m, d).
        shape: of one sample, *D, with d values.

    Raises:
        ValueError: for a matrix of another size.
    """

    def __init__(self, a: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        size = math.prod(self.shape)
        if a.ndim != 2 or a.shape[1] != size or len(a) == 0 or a.is_complex():
            raise ValueError(
                f"expected a real matrix (m, {size}) for samples of shape {self.shape}, got {tuple(a.shape)} of "
                f"{a.dtype}: give a column for each value of a sample"
            )
        self._matrix = Constant(a.double())

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (len(self._matrix.exact),)

    def measure(self, x0: Tensor) -> Tensor:
        return times(self._matrix.beside(x0), x0)

    def transpose(self, y: Tensor) -> Tensor:
        return times(self._matrix.beside(y).mT, y).reshape(-1, *self.shape)

    def svd(self) -> SVD:
        return self._svd

    @functools.cached_property
    def _svd(self) -> SVD:
        return of_matrix(self._matrix.exact, self.shape, self.measured_shape)


def read_matrix(path: str | Path, shape: tuple[int, ...]) -> Matrix:
    """The measurement of a matrix in a file `.npy`.

    Raises:
        ValueError: for a file that cannot be read, or a matrix of another size.
    """
    return Matrix(read_array(path)[0], shape)
