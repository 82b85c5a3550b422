"""The training loop, as a generator: whoever calls it owns logging and saving."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from sde_lib import SDE
from training import times as times_
from training import weighting
from training.ema import EMA
from training.loss import dsm_loss
from training.times import Times
from training.weighting import Weighting

Batch = Tensor | dict[str, Tensor]


class Step(NamedTuple):
    """What happened in a step. The tensors are left on their device: read them when you need them.

    Args:
        step, images: how far training has come with it.
        loss: its mean over the batch, ().
        grad_norm: before clipping, ().
        learning_rate: that was used.
        losses: of each example, weighted, (B,).
        times: of each example, (B,).
        batch: what it was computed on: x0 (B, *D), eps, and conditioning.
    """

    step: int
    images: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    losses: Tensor
    times: Tensor
    batch: dict[str, Tensor]


@dataclass
class TrainingState:
    """Everything training changes, and so everything a checkpoint holds.

    Args:
        denoiser: the module in training.
        optimizer: by default Adam at 2e-4 (Ho et al. 2020).
        ema: by default of decay 0.9999.
        generator: of times and noise, on the denoiser's device; by default seeded with 0.
        step, images: how far it has come.
    """

    denoiser: nn.Module
    optimizer: torch.optim.Optimizer = field(default=None)  # type: ignore[assignment]
    ema: EMA[nn.Module] = field(default=None)  # type: ignore[arg-type]
    generator: Generator = field(default=None)  # type: ignore[assignment]
    step: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        self.optimizer = self.optimizer or torch.optim.Adam(self.denoiser.parameters(), lr=2e-4)
        self.ema = self.ema or EMA(self.denoiser)
        device = next(self.denoiser.parameters()).device
        self.generator = self.generator or Generator(device).manual_seed(0)


def train(
    denoiser: nn.Module,
    sde: SDE,
    loader: Iterable[Batch],
    *,
    images: int,
    weight: Weighting = weighting.simple,
    times: Times = times_.stratified,
    state: TrainingState | None = None,
    schedule: Callable[[int], float] = lambda images: 1.0,
    clip: float | None = 1.0,
    precision: torch.dtype = torch.float32,
) -> Iterator[Step]:
    """Steps of denoising score matching until `images` have been seen, one record a step.

    Args:
        denoiser: trained in place.
        sde: the path.
        loader: yields x0 (B, *D), or a dict with "x0" and conditioning; gone through again as often as needed.
        images: the length of training, counted from the start, not from where `state` stands.
        weight: see `training.weighting`.
        times: see `training.times`.
        state: optimiser, EMA, generator and progress, to keep or to resume; a new one by default.
        schedule: factor on the optimiser's learning rate, as a function of the images seen.
        clip: largest norm of the gradient, None for no limit.
        precision: bfloat16 runs the network under autocast.

    Raises:
        ValueError: if the loader has nothing to give.
    """
    state = state or TrainingState(denoiser)
    device = next(denoiser.parameters()).device
    rates = [group.setdefault("initial_lr", group["lr"]) for group in state.optimizer.param_groups]
    batches = _again_and_again(loader)
    denoiser.train()
    while state.images < images:
        x0, cond = _split(next(batches), device)
        factor = schedule(state.images)
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor

        t = times(sde, len(x0), state.generator)
        eps = torch.randn(x0.shape, generator=state.generator, device=device, dtype=x0.dtype)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            losses = dsm_loss(denoiser, sde, x0, t, eps, weight=weight, **cond)
            loss = losses.mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = float("inf") if clip is None else clip
        norm = nn.utils.clip_grad_norm_(denoiser.parameters(), limit)
        state.optimizer.step()
        state.ema.update(denoiser)

        state.step += 1
        state.images += len(x0)
        rate = float(state.optimizer.param_groups[0]["lr"])
        batch = {"x0": x0, "eps": eps, **cond}
        yield Step(state.step, state.images, loss.detach(), norm, rate, losses.detach(), t, batch)


def _again_and_again(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("expected a loader with at least one batch, got an empty one: is it a used-up generator?")


def _split(batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    if isinstance(batch, Tensor):
        return batch.to(device), {}
    rest = {key: value.to(device) for key, value in batch.items() if key != "x0"}
    if "x0" not in batch:
        raise ValueError(f'expected a batch to be a tensor or a dict with "x0", got the keys {sorted(rest)}')
    return batch["x0"].to(device), rest
