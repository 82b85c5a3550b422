"""Everything that training changes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, nn

from scorefield.training.adam import adam
from scorefield.training.averages.ema import EMA
from scorefield.training.model import Model
from scorefield.training.times import Measured


class TrainingState:
    """Everything that training changes, which is what a checkpoint holds.

    Args:
        model: in training; a bare denoiser becomes a `Model` with only that.
        optimizer: of the first objective; by default `adam` at 2e-4 (Ho et al. 2020).
        ema: averages of the model, or of the bare denoiser; by default one of decay 0.9999.
        generator: of the objectives' random numbers, on the model's device; by default seeded with 0.
        step, images: the number of steps taken and of images seen.
        more_optimizers: of further objectives, in their order.
        times: what the times of training remember, if they do, as `Measured` does.

    Raises:
        ValueError: if the averages have another number of weights than the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        ema: EMA[Any] | None = None,
        generator: Generator | None = None,
        step: int = 0,
        images: int = 0,
        more_optimizers: Sequence[torch.optim.Optimizer] = (),
        times: Measured | None = None,
    ) -> None:
        self.model = model if isinstance(model, Model) else Model(model)
        self.optimizer = optimizer or adam(self.model)
        self.ema: EMA[Any] = ema or EMA(self.model)
        weights = list(self.model.parameters())
        if (count := len(list(self.ema.model.parameters()))) != len(weights):
            raise ValueError(f"expected averages of the model's {len(weights)} tensors, got {count}: use EMA(model)")
        self.generator = generator or Generator(weights[0].device).manual_seed(0)
        self.step, self.images = step, images
        self.more_optimizers = tuple(more_optimizers)
        self.times = times

    @property
    def denoiser(self) -> nn.Module:
        """The model's denoiser."""
        denoiser: nn.Module = self.model.denoiser
        return denoiser

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Of all objectives."""
        return (self.optimizer, *self.more_optimizers)
