"""Linear systems of a batch, each sample's own."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, *, steps: int, tolerance: float = 0.0
) -> Tensor:
    """The solutions x (B, *M) of  product(x) = b,  for symmetric positive matrices, after at most so many steps.

    Hestenes and Stiefel 1952. A sample whose residual is below `tolerance` times its b stays as it is, so that no
    sample depends on the others of its batch.

    Args:
        product: the matrices times a vector, (B, *M) -> (B, *M).
        b: (B, *M).
        steps: the most products.
        tolerance: of the residual, relative to b.
    """
    x, r = torch.zeros_like(b), b
    p, rr = r, _dot(r, r)
    start = rr
    for _ in range(steps):
        going = rr > tolerance**2 * start
        if not bool(going.any()):
            break
        q = product(p)
        pq = _dot(p, q)
        a = torch.where(going & (pq > 0), rr / torch.where(pq > 0, pq, 1.0), 0.0)
        x, r = x + a * p, r - a * q
        after = _dot(r, r)
        p = r + torch.where(going, after / torch.where(rr > 0, rr, 1.0), 0.0) * p
        rr = torch.where(going, after, rr)
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))
