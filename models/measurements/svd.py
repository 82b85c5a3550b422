"""Singular value decompositions of linear measurements, by their maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from scorefield.models.measurements.constants import Constant

BLOCK = 16  # vectors of a product


@dataclass(frozen=True)
class SVD:
    """A = U diag(s) V^T by its four maps. U and V are real and have orthonormal columns.

    Args:
        s: the singular values, (r,), in float64. Values of zero may be among them, or may be left out.
        v_t: V^T, x (B, *D) -> (B, r).
        v: (B, r) -> (B, *D).
        u_t: U^T, y (B, *M) -> (B, r).
        u: (B, r) -> (B, *M).
    """

    s: Tensor
    v_t: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    u_t: Callable[[Tensor], Tensor]
    u: Callable[[Tensor], Tensor]

    def values(self, like: Tensor) -> Tensor:
        """The singular values in the dtype of a batch. Those that its rounding hides are zero."""
        s = self.s.to(like)
        return torch.where(s > 16 * torch.finfo(s.dtype).eps * s.max(), s, 0.0)

    def inverse(self, like: Tensor) -> Tensor:
        """1 / s, and 0 where s is zero."""
        s = self.values(like)
        return torch.where(s > 0, 1 / torch.where(s > 0, s, 1.0), 0.0)


def of_equal_values(
    value: float, size: int, shape: tuple[int, ...], measured_shape: tuple[int, ...],
    measure: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor],
) -> SVD:  # fmt: skip
    """The decomposition where  A A^T = value^2 I:  U is the identity, and V^T = A / value."""
    return SVD(
        torch.full((size,), value, dtype=torch.float64),
        lambda x: measure(x).flatten(1) / value,
        lambda c: transpose(c.reshape(-1, *measured_shape)) / value,
        lambda y: y.flatten(1),
        lambda c: c.reshape(-1, *measured_shape),
    )


def of_matrix(matrix: Tensor, shape: tuple[int, ...], measured_shape: tuple[int, ...], copies: int = 1) -> SVD:
    """The decomposition of a measurement that multiplies parts of each sample by one matrix.

    Args:
        matrix: (m / copies, d / copies).
        shape: *D, whose values are the parts, one after the other.
        measured_shape: *M, likewise.
        copies: the number of parts, as the channels of an image.
    """
    u, s, v_t = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
    s = torch.where(s > max(matrix.shape) * torch.finfo(s.dtype).eps * s.max(), s, 0.0)
    left, right = Constant(u), Constant(v_t)
    return SVD(
        s.repeat(copies),
        lambda x: times(right.beside(x), x, copies),
        lambda c: times(right.beside(c).mT, c, copies).reshape(-1, *shape),
        lambda y: times(left.beside(y).mT, y, copies),
        lambda c: times(left.beside(c), c, copies).reshape(-1, *measured_shape),
    )


def times(matrix: Tensor, x: Tensor, copies: int = 1) -> Tensor:
    """The matrix (m, d) times each part of each sample, (B, copies m).

    Each product has `BLOCK` vectors, with zeros where there are fewer. A product of another size has other rounding,
    and a sample's result would depend on the size of its batch.
    """
    parts = x.reshape(len(x) * copies, matrix.shape[1])
    padded = functional.pad(parts, (0, 0, 0, -len(parts) % BLOCK))
    products = [(matrix @ block.mT).mT for block in padded.reshape(-1, BLOCK, matrix.shape[1]).unbind()]
    return torch.cat(products)[: len(parts)].reshape(len(x), copies * len(matrix))


def is_small(shape: tuple[int, ...], measured_shape: tuple[int, ...]) -> bool:
    """Whether a matrix of these sizes is decomposed in seconds."""
    sizes = math.prod(shape), math.prod(measured_shape)
    return min(sizes) <= 1024 and max(sizes) <= 4096
