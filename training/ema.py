"""A moving average of the weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """theta_ema <- d theta_ema + (1 - d) theta,  d = min(decay, (1 + n) / (10 + n)) at update n.

    The ramp forgets the start quickly; `ema.model` is a copy of the model in evaluation mode with the
    averaged weights (buffers are copied), ready to sample with.

    Args:
        model: what to average.
        decay: 0 follows the weights, near 1 averages long.
    """

    def __init__(self, model: Model, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected an EMA decay within [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Take the model's weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
