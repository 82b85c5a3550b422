"""From integers to densities and back: dequantisation, and bits/dim."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def dequantise(
    images: Tensor,
    levels: int,
    *,
    low: float = -1.0,
    high: float = 1.0,
    uniform: Callable[[Tensor], Tensor] = torch.rand_like,
) -> tuple[Tensor, Tensor]:
    """Integers k in 0 .. levels - 1 as  x = low + (high - low) (k + u) / levels,  u uniform on [0, 1).

    By Jensen  log P(k) >= E_u log p(x) + log_det,  so bits/dim from it are an upper bound (Theis et al. 2016, Eq. 10).

    Returns:
        x (B, *D) in float32, and log_det = D log((high - low) / levels) in nats, a scalar.

    Raises:
        ValueError: if the integers are not within 0 .. levels - 1.
    """
    if images.is_floating_point() or images.is_complex():
        raise ValueError(
            f"expected integers 0 .. {levels - 1}, got {images.dtype}: continuous data needs no dequantising"
        )
    images = images.long()  # torch has no min of uint16
    if images.numel() and (int(images.min()) < 0 or int(images.max()) >= levels):
        raise ValueError(
            f"expected integers 0 .. {levels - 1} for {levels} levels, got {int(images.min())} to {int(images.max())}"
        )
    k = images.float()
    log_det = torch.tensor(math.prod(images.shape[1:]) * math.log((high - low) / levels))
    return low + (high - low) / levels * (k + uniform(k)), log_det


def centres(images: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The middles of the integers' cells, (B, *D) in float32; raises as `dequantise` does."""
    return dequantise(images, levels, low=low, high=high, uniform=lambda k: torch.full_like(k, 0.5))[0]


def quantise(x: Tensor, levels: int, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The integers whose cells `x` lies in, `dequantise` undone; beyond the range, the nearest. Same shape, int64."""
    return ((x - low) * (levels / (high - low))).floor().clamp(0, levels - 1).long()


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """-log_prob / (dims log 2), for log_prob in nats: bits for each dimension."""
    return -log_prob / (dims * math.log(2))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over a set and its standard error, std / sqrt(n); the error of one value is nan."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
