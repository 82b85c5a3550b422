"""The two conventions every folder shares: how a scale meets a batch, and what a denoiser is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Anything called as `D(x, alpha, sigma, **cond)` that returns E[x0 | x], shape (B, *D).
DenoiserLike = Callable[..., Tensor]


def expand(scale: Tensor, x: Tensor) -> Tensor:
    """A scale `()` or `(B,)` in the dtype and on the device of `x (B, *D)`, shaped to multiply it.

    Raises:
        ValueError: if the scale is neither a scalar nor one number for each of the B samples, or x is of integers.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point samples, got {x.dtype}: dequantise integers, or cast them")
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"expected a scale of shape () or ({x.shape[0]},) for a batch of shape {tuple(x.shape)}, "
            f"got {tuple(scale.shape)}: pass one number, or one for each sample"
        )
    return scale.to(x.device, x.dtype).reshape(scale.shape + (1,) * (x.ndim - scale.ndim))


def predict_noise(denoiser: DenoiserLike, x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
    """The noise a denoiser sees in `x`:  eps = (x - alpha D(x)) / sigma,  shape (B, *D).

    A denoiser with a method `noise` is asked directly: it can answer without dividing a small
    difference by a small sigma.
    """
    direct = getattr(denoiser, "noise", None)
    if callable(direct):
        noise: Tensor = direct(x, alpha, sigma, **cond)
        return noise
    return (x - expand(alpha, x) * denoiser(x, alpha, sigma, **cond)) / expand(sigma, x)


def of_rows(denoiser: DenoiserLike, rows: slice | Tensor) -> DenoiserLike:
    """The denoiser for some rows of its batch: one with conditioning for each sample has a method `rows` for it."""
    part = getattr(denoiser, "rows", None)
    chosen: DenoiserLike = part(rows) if callable(part) else denoiser
    return chosen


def precise(scale: Tensor) -> Tensor:
    """The scale in float64, where the device has it: scalars cost nothing, and their differences keep digits."""
    return scale if scale.device.type == "mps" else scale.double()


def as_time(t: Tensor | float) -> Tensor:
    """A time as a tensor: tensors pass, numbers become float64 scalars."""
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
