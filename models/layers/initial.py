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


def as_images(x: Tensor, channels: int, stride: int) -> Tensor:
    """The images x (B, C, H, W), in channels-last order.

    Raises:
        ValueError: if x has another shape, or the stride does not divide the height and width.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"expected images (B, {channels}, H, W), got {tuple(x.shape)}: {other_than_images(x)}")
    if x.shape[-2] % stride or x.shape[-1] % stride:
        raise ValueError(
            f"expected a height and width divisible by {stride}, got {tuple(x.shape[-2:])}: "
            "crop or pad the images, or use fewer multipliers (net.multipliers)"
        )
    return x.contiguous(memory_format=torch.channels_last)
