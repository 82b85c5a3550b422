"""A matrix as a measurement, with its singular values."""

import math

import torch
from torch import Tensor

from scorefield.models.measurements import SVD, Linear
from scorefield.sde_lib.broadcast import precise


class Dense(Linear):
    """A x0 for a matrix (m, d), a sum for each sample, so that no sample depends on how many there are."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.a = matrix

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (len(self.a),)

    def measure(self, x0: Tensor) -> Tensor:
        return times(self.a, x0.flatten(1))

    def transpose(self, y: Tensor) -> Tensor:
        return times(self.a.T, y).reshape(-1, *self.shape)

    def svd(self) -> SVD:
        u, s, v_t = torch.linalg.svd(precise(self.a), full_matrices=False)
        return SVD(
            s,
            lambda x: times(v_t, x.flatten(1)),
            lambda z: times(v_t.T, z).reshape(-1, *self.shape),
            lambda y: times(u.T, y),
            lambda z: times(u, z),
        )


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrix (n, d) times the rows of x (B, d), (B, n)."""
    return (matrix.to(x) * x.unsqueeze(1)).sum(2)


def pixels(shape: tuple[int, ...], known: list[int]) -> Dense:
    """The measurement of some values of a sample."""
    return Dense(torch.eye(math.prod(shape), dtype=torch.float64)[known], shape)
