"""Sets of features (N, d): what they must be, and blocks of their rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

ENTRIES = 1 << 25  # of a block of a matrix (N, M) in float64: 256 MB


def float64(*sets: Tensor, least: int = 1) -> tuple[Tensor, ...]:
    """The sets of features (N, d) in float64 on the CPU.

    Raises:
        ValueError: unless they are finite features of one width, each of at least `least` rows.
    """
    for features in sets:
        if features.ndim != 2 or len(features) < least or features.shape[1:] != sets[0].shape[1:]:
            raise ValueError(
                f"expected features (N, d) of one width, N at least {least}, got "
                f"{' and '.join(str(tuple(each.shape)) for each in sets)}: give a row for each sample"
            )
    wide = tuple(features.detach().cpu().double() for features in sets)
    if not all(bool(features.sum().isfinite()) for features in wide):  # quicker than a test of each entry
        raise ValueError("expected finite features, got NaN or infinity: look at the samples")
    return wide


def blocks(count: int, columns: int, entries: int = ENTRIES) -> Iterator[slice]:
    """Slices of `count` rows in order, so that a block of this many columns has at most about `entries` entries."""
    size = max(1, entries // max(1, columns))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 (N, M) as |x|^2 + |y|^2 - 2 x.y: quick, with the rounding of |x|^2 + |y|^2."""
    cross = torch.addmm((y * y).sum(1).expand(len(x), -1), x, y.T, alpha=-2)
    return cross.add_((x * x).sum(1, keepdim=True)).clamp_(min=0)
