"""Moving averages of the weights."""

import copy
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

from scorefield.training.distributed.shards import by_sharding

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """theta_ema <- d theta_ema + (1 - d) theta,  d = min(decay, r_n) at update n.

    The ramp r_n forgets the start: (1 + n) / (10 + n), or with `ramp` 2^(-1 / (ramp n)), whose half-life is that
    fraction of the updates so far (as in the code of Karras et al. 2022). `ema.model` is a copy of the model in
    evaluation mode with the averaged weights, ready to sample with; buffers are copied. Averages of several decays are
    in `ema.models`, the first is `ema.model`.

    Args:
        model: whose weights to average.
        decay: 0 follows the weights, near 1 averages long; or several.
        ramp: the longest half-life, relative to the updates so far; 0 for the other ramp.

    Raises:
        ValueError: unless every decay is within [0, 1), and the ramp is not negative.
    """

    def __init__(self, model: Module, decay: float | Sequence[float] = 0.9999, ramp: float = 0.0) -> None:
        self.decays = tuple(decay) if isinstance(decay, Sequence) else (decay,)
        if not self.decays or not all(0 <= each < 1 for each in self.decays):
            raise ValueError(f"expected an EMA decay within [0, 1), got {decay}")
        if not 0 <= ramp < math.inf:
            raise ValueError(f"expected the ramp of an EMA to be 0 or more, as 0.05, got {ramp}")
        self.ramp = ramp
        self.updates = 0
        self.models = [average_of(model) for _ in self.decays]

    @property
    def model(self) -> Module:
        """The average of the first decay."""
        return self.models[0]

    @property
    def decay(self) -> float:
        """The first decay."""
        return self.decays[0]

    @torch.no_grad()
    def update(self, model: Module) -> None:
        """Move the averages towards the model's weights."""
        n = self.updates
        ramp = 0.5 ** (1 / max(self.ramp * n, 1e-8)) if self.ramp else (1 + n) / (10 + n)
        self.updates += 1
        for average, decay in zip(self.models, self.decays, strict=True):
            follow(average, model, 1 - min(decay, ramp))


def average_of(model: Module) -> Module:
    """A copy of a model that becomes its average: in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move an average towards a model: a <- (1 - share) a + share m, in place; buffers are copied."""
    groups = (by_sharding(list(each.parameters())) for each in (average, model))
    for weights, current in zip(*groups, strict=True):
        torch._foreach_lerp_(weights, current, share)
    for ours, current in zip(average.buffers(), model.buffers(), strict=True):
        ours.copy_(current)
