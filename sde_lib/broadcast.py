"""Scales beside batches: how alpha and sigma, numbers or tensors, meet samples `(B, *D)`."""

import torch
from torch import Tensor

Scale = Tensor | float  # (), (B,), a plain number, or of x's shape on a path with a noise level for each dimension


def expand(scale: Scale, x: Tensor) -> Tensor:
    """A scale `()`, `(B,)` or `(B, *D)` in the dtype and on the device of `x (B, *D)`, shaped to multiply it.

    Raises:
        ValueError: if the scale is neither a scalar, nor one number for each of the B samples or for each value of x;
            or x is of integers.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point samples, got {x.dtype}: dequantise integers, or cast them")
    scale = as_tensor(scale)
    if scale.ndim > 1 and scale.shape == x.shape:
        return scale.to(x.device, x.dtype)
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"expected a scale of shape () or ({x.shape[0]},) for a batch of shape {tuple(x.shape)}, "
            f"got {tuple(scale.shape)}: pass one number, or one for each sample"
        )
    return scale.to(x.device, x.dtype).reshape(scale.shape + (1,) * (x.ndim - scale.ndim))


def like(answer: Tensor, x: Tensor, who: str) -> Tensor:
    """The answer, once it has the shape of `x`: broadcasting would mix the samples of a batch without a word.

    Raises:
        ValueError: for another shape, or what is no tensor; `who` answered.
    """
    return _of_shape(answer, x.shape, f"{who} to answer in the shape of x")


def one_each(answer: Tensor, batch: int, who: str) -> Tensor:
    """The answer, once it is one number for each sample, (B,).

    Raises:
        ValueError: for another shape, or what is no tensor; `who` answered.
    """
    return _of_shape(answer, (batch,), f"{who} to answer with one number for each sample")


def _of_shape(answer: Tensor, shape: tuple[int, ...], expected: str) -> Tensor:
    got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if got != tuple(shape):
        raise ValueError(
            f"expected {expected}, {tuple(shape)}, got {got}: return that shape, and pass what belongs to each sample "
            "with a row for each"
        )
    return answer


def precise(scale: Scale) -> Tensor:
    """The scale in float64, where the device has it: differences of scales then keep their digits."""
    scale = as_tensor(scale)
    return scale if scale.device.type == "mps" else scale.double()


def as_tensor(number: Tensor | float) -> Tensor:
    """Tensors pass; plain numbers become float64 tensors of shape ()."""
    return number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)
