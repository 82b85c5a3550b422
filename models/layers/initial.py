"""Initial weights, and what every U-Net does with its input."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
# Keeps the variance of a sum of two independent terms that of one (Karras et al. 2018, StyleGAN; NCSN++).
RESCALED = math.sqrt(0.5)


def zeroed(layer: Layer) -> Layer:
    """The layer with weights and bias zero: a residual branch that starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def channels_last(network: nn.Module) -> None:
    """Store a network's kernels in channels-last order: convolutions are faster so, on CPUs and on tensor cores."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def other_than_images(x: Tensor) -> str:
    """What to do with data that are no images (B, C, H, W), for a network that takes images alone."""
    return "give grey images a channel, x[:, None]; other data takes an MLP" if x.ndim == 3 else "vectors take an MLP"


FEWER_LEVELS = "crop or pad the images, or use fewer multipliers (net.multipliers)"


def as_images(x: Tensor, channels: int, stride: int, advice: str = FEWER_LEVELS) -> Tensor:
    """The images x (B, C, H, W), in channels-last order.

    Args:
        x: the images.
        channels: that they must have.
        stride: that must divide the height and width.
        advice: what to do where it does not.

    Raises:
        ValueError: if x has another shape, or the stride does not divide the height and width.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"expected images (B, {channels}, H, W), got {tuple(x.shape)}: {other_than_images(x)}")
    if x.shape[-2] % stride or x.shape[-1] % stride:
        raise ValueError(f"expected a height and width divisible by {stride}, got {tuple(x.shape[-2:])}: {advice}")
    return x.contiguous(memory_format=torch.channels_last)


def with_concat(x: Tensor, concat: Tensor | None, channels: int) -> Tensor:
    """The images x (B, C, H, W) with `channels` further ones behind them: those given, or zeros where none are.

    Raises:
        ValueError: if the further ones have another shape, or the network takes none.
    """
    if channels == 0 and concat is None:
        return x
    expected = (len(x), channels, *x.shape[2:])
    if channels == 0 or (concat is not None and concat.shape != expected):
        got = "none" if concat is None else str(tuple(concat.shape))
        fix = "resize them to x" if channels else "leave them out, or make the network with net.concat"
        raise ValueError(f"expected concat images of shape {expected}, got {got}: {fix}")
    further = x.new_zeros(expected) if concat is None else concat.to(x.dtype)
    return torch.cat([x, further], 1).contiguous(memory_format=torch.channels_last)


def as_context(
    x: Tensor, context: Tensor | None, mask: Tensor | None, width: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """The tokens (B, M, width) in x's dtype, and which of them count, (B, M); None for none, and for all.

    Raises:
        ValueError: if they have another shape, or the network takes none.
    """
    if context is None:
        if mask is not None:
            raise ValueError("expected a context with context_mask, got only the mask: give context, or neither")
        return None, None
    if width is None or context.ndim != 3 or (len(context), context.shape[2]) != (len(x), width):
        takes = "no context" if width is None else f"a context ({len(x)}, M, {width})"
        fix = "leave it out, or make the network with net.context" if width is None else "use its own conditioner"
        raise ValueError(f"expected {takes}, got {tuple(context.shape)}: {fix}")
    if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"expected a context_mask {tuple(context.shape[:2])} of booleans, got {tuple(mask.shape)} of {mask.dtype}: "
            "it is true where a token counts"
        )
    return context.to(x.dtype), mask
