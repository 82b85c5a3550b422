"""The learning rate along a run."""

import math
from collections.abc import Callable

import ml_collections


def schedule_of(settings: ml_collections.ConfigDict) -> Callable[[int], float]:
    """The factor on the learning rate by the images seen: a rise over `warmup`, and half a cosine with `decay`."""

    def factor(images: int) -> float:
        rise = min(1.0, (images + settings.batch) / settings.warmup) if settings.warmup else 1.0
        fall = (1 + math.cos(math.pi * min(1.0, images / settings.images))) / 2 if settings.decay else 1.0
        return rise * fall

    return factor
