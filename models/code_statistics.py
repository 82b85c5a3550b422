"""The mean and the deviation of an autoencoder's codes, measured over images, with their errors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.models.moments import Moments


@dataclass(frozen=True)
class CodeStatistics:
    """What brings codes to mean 0 and deviation 1 in each channel:  z = scale (codes - shift).

    Args:
        shift: the mean of each channel.
        scale: one over its deviation.
        shift_error: the standard error of each mean, images being independent.
        std_error: the standard error of each deviation, relative to it.
        images: over how many.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    shift_error: tuple[float, ...]
    std_error: tuple[float, ...]
    images: int


def code_statistics(batches: Iterable[Moments]) -> CodeStatistics:
    """The statistics of codes z ~ q(z | x) over images, in one pass and in float64.

    The variance is that of the law of total variance,  Var z = E Var[z | x] + Var E[z | x],  over images and places.

    Args:
        batches: the moments of the images, (B, c, h, w) each.

    Raises:
        ValueError: for fewer than two images, codes that are not finite, or a channel that is constant.
    """
    firsts, seconds = [], []
    for moments in batches:
        mean = moments.mean.double()
        square = mean.square() if moments.log_var is None else mean.square() + moments.log_var.double().exp()
        firsts.append(mean.mean((2, 3)).cpu())
        seconds.append(square.mean((2, 3)).cpu())
    if sum(map(len, firsts)) < 2:
        raise ValueError("expected at least two images to measure the scale of codes, got fewer: give more")
    first, second = torch.cat(firsts), torch.cat(seconds)
    mean = first.mean(0)
    spread = second - 2 * mean * first + mean.square()  # of each image, around the mean of all
    variance = spread.mean(0)
    if not bool(variance.isfinite().all()) or bool((variance <= 1e-12 * (1 + mean.square())).any()):
        raise ValueError(
            f"expected codes that are finite and vary in every channel, got variances {_shown(variance)}: train the "
            "autoencoder longer"
        )
    count = len(first)
    std = variance.sqrt()
    return CodeStatistics(
        shift=tuple(mean.tolist()),
        scale=tuple((1 / std).tolist()),
        shift_error=tuple((first.std(0) / math.sqrt(count)).tolist()),
        std_error=tuple((spread.std(0) / (2 * variance * math.sqrt(count))).tolist()),
        images=count,
    )


def _shown(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.tolist())
