"""Moving averages of the weights."""

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """theta_ema <- d theta_ema + (1 - d) theta,  d = min(decay, (1 + n) / (10 + n)) at update n.

    The ramp forgets the start quickly; `ema.model` is a copy of the model in evaluation mode with the
    averaged weights (buffers are copied), ready to sample with. Several decays are averaged side by side, in
    `ema.models`; the first is `ema.model`.

    Args:
        model: what to average.
        decay: 0 follows the weights, near 1 averages long; or several.
    """

    def __init__(self, model: Model, decay: float | Sequence[float] = 0.9999) -> None:
        self.decays = tuple(decay) if isinstance(decay, Sequence) else (decay,)
        if not self.decays or not all(0 <= each < 1 for each in self.decays):
            raise ValueError(f"expected an EMA decay within [0, 1), got {decay}")
        self.updates = 0
        self.models = [average_of(model) for _ in self.decays]

    @property
    def model(self) -> Model:
        """The average of the first decay, the one to sample with."""
        return self.models[0]

    @property
    def decay(self) -> float:
        """The first."""
        return self.decays[0]

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Take the model's weights into the averages."""
        ramp = (1 + self.updates) / (10 + self.updates)
        self.updates += 1
        for average, decay in zip(self.models, self.decays, strict=True):
            follow(average, model, 1 - min(decay, ramp))


def average_of(model: Model) -> Model:
    """A copy of a model to average in: in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move an average towards a model: a <- (1 - share) a + share m, in place; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    for ours, current in zip(average.buffers(), model.buffers(), strict=True):
        ours.copy_(current)
