"""The training loop, as a generator over a list of objectives: the caller logs and saves."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scorefield.sde_lib.broadcast import one_each
from scorefield.training.data.units import as_batch
from scorefield.training.distributed.blocks import recomputing
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.shards import by_sharding, full, in_shards, mean_over_ranks
from scorefield.training.model import Model
from scorefield.training.state import TrainingState

Batch = Tensor | dict[str, Tensor] | Sequence[Tensor]
HOST_DEVICES = ("cpu",)  # reading a number from these does not wait


class Step(NamedTuple):
    """One step of an objective. The tensors stay on their device: read them only when needed.

    With several processes, loss, losses, batch and numbers are of this process's rows: `Ranks.mean` and
    `Ranks.all_gather` give those of all.

    Args:
        step, images: the count of steps and of images seen, this step included.
        loss: the mean over the batch, ().
        grad_norm: before clipping, ().
        learning_rate: of this step.
        losses: of each example, weighted, (B,).
        batch: what the losses were computed on, with the drawn random numbers.
        numbers: what else the objective reports, (B,) each.
    """

    step: int
    images: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    losses: Tensor
    batch: dict[str, Tensor]
    numbers: dict[str, Tensor]

    @property
    def times(self) -> Tensor:
        """The time of each example, (B,)."""
        return self.batch["times"]


def finite(step: Step) -> Tensor:
    """Whether the gradient is finite, () of bool; the norm, and so the answer, is the same on every process."""
    return step.grad_norm.isfinite()


@dataclass
class Objective:
    """A loss, and the optimiser of the weights that it trains.

    Args:
        optimizer: one of the state's; its weights are trained and clipped.
        loss: `(model, batch) -> losses (B,)`, or a pair of those and of further numbers (B,) to report.
        draw: `(model, batch, generator) -> tensors`, a row for each example: the random numbers of the complete
            batch, which are added to it. They do not depend on the number of processes or on `accumulate`.
        every: the objective takes each `every`-th step.
        due: whether it takes the step that comes; asked before that step, with the same answer on every process. A step
            that is not taken costs nothing.
        accept: whether to take a step, () of bool, called once a step before the optimiser moves. A refused step leaves
            weights, moments and averages unchanged. (On CUDA averages continue towards the unchanged weights, and an
            optimiser that is not fused continues by its moments.)
        after: called on every process once the optimiser has moved, for what follows the losses.
    """

    optimizer: torch.optim.Optimizer
    loss: Callable[[Model, dict[str, Tensor]], Tensor | tuple[Tensor, dict[str, Tensor]]]
    draw: Callable[[Model, dict[str, Tensor], Generator], dict[str, Tensor]] = lambda model, batch, generator: {}
    every: int = 1
    due: Callable[[TrainingState], bool] = lambda state: True
    accept: Callable[[Step], Tensor] = finite
    after: Callable[[Step], None] = lambda step: None

    @property
    def weights(self) -> list[Tensor]:
        """Those that it trains."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def run(
    state: TrainingState,
    objectives: Sequence[Objective],
    loader: Iterable[Batch],
    *,
    images: int,
    schedule: Callable[[int], float] = lambda images: 1.0,
    clip: float | None = 1.0,
    precision: torch.dtype = torch.float32,
    accumulate: int = 1,
    recompute: bool = False,
) -> Iterator[tuple[Step, ...]]:
    """Train until `images` have been seen: a record of each objective that was due, once a step.

    The objectives of a step follow one another on the same batch, each with its own backward pass and optimiser; the
    weights of the others are frozen meanwhile. The averages follow at the end of the step.

    Where torch.distributed has been started, its processes train together: by DistributedDataParallel, or in shards
    (`training.distributed.sharding`). Each needs the same loader, state and arguments. Batches and random numbers are
    those of one process, and each process takes its rows. So neither the number of processes nor `accumulate` changes
    the result, except by rounding and by dropout, which every process draws from its own torch seed.

    Args:
        state: changed in place.
        objectives: their optimisers are the state's.
        loader: yields x0 (B, *D), (x0,), (x0, label), or a dict with "x0" and conditioning; repeated as often as
            needed.
        images: the length of training, counted from the start and not from the state's position.
        schedule: factor on the learning rates, as a function of the images seen.
        clip: largest norm of an objective's gradient, None for no limit.
        precision: bfloat16 runs the losses under autocast.
        accumulate: the number of parts that a batch is divided into, one after another, to save memory.
        recompute: compute the blocks' activations again in the backward pass, to save more memory.

    Raises:
        ValueError: if the loader is empty, a batch does not divide by the processes and `accumulate`, or no objective
            takes every step.
    """
    if accumulate < 1:
        raise ValueError(f"expected training.accumulate to be at least 1, got {accumulate}")
    if min((objective.every for objective in objectives), default=0) != 1:
        raise ValueError(f"expected an objective with every=1, got {[each.every for each in objectives]}: add one")
    model, ranks = state.model, Ranks.current()
    device = next(model.parameters()).device
    rates = [[group.setdefault("initial_lr", group["lr"]) for group in o.optimizer.param_groups] for o in objectives]
    batches = cycle(loader)
    with recomputing(model, recompute):
        parallel = []
        for objective in objectives:
            with _others_frozen(objective, model):
                parallel.append(_parallel(_Loss(model, objective), ranks))
        model.train()
        while state.images < images:
            batch = as_batch(next(batches))
            count = len(batch["x0"])
            rows = ranks.rows(count, accumulate)
            factor = schedule(state.images)
            records, moved = [], False
            for objective, loss, own_rates in zip(objectives, parallel, rates, strict=True):
                if (state.step + 1) % objective.every or not objective.due(state):
                    continue
                for group, rate in zip(objective.optimizer.param_groups, own_rates, strict=True):
                    group["lr"] = rate * factor
                with torch.no_grad():
                    drawn = objective.draw(model, batch, state.generator)
                part = {name: value[rows].to(device, non_blocking=True) for name, value in {**batch, **drawn}.items()}
                objective.optimizer.zero_grad(set_to_none=True)
                with _others_frozen(objective, model):
                    losses, numbers = _backward(loss, part, accumulate, precision)
                if in_shards(model):
                    mean_over_ranks([weight.grad for weight in objective.weights])
                norm = _clip(objective.weights, clip)
                learning_rate = float(objective.optimizer.param_groups[0]["lr"])
                position = state.step + 1, state.images + count
                record = Step(*position, losses.mean(), norm, learning_rate, losses, part, numbers)
                moved |= _optimizer_step(objective, objective.accept(record))
                objective.after(record)
                records.append(record)
            if moved:
                state.ema.update(model)
            state.step += 1
            state.images += count
            yield tuple(records)


class _Loss(nn.Module):
    """An objective's loss as a module, as DistributedDataParallel expects."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.loss = model, objective.loss

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        answer = self.loss(self.model, batch)
        losses, numbers = answer if isinstance(answer, tuple) else (answer, dict[str, Tensor]())
        for name, value in {"loss": losses, **numbers}.items():
            one_each(value, len(batch["x0"]), f"the objective's {name}")
        return losses, numbers


def _backward(
    loss: nn.Module, batch: dict[str, Tensor], accumulate: int, precision: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses and numbers of a batch, in parts; the gradient of the mean loss is left in the weights."""
    count, device = len(batch["x0"]), batch["x0"].device
    parts, size = [], count // accumulate
    for first in range(0, count, max(size, 1)):
        last = first + size >= count
        with nullcontext() if last else _unsynchronised(loss):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                losses, numbers = loss({name: value[first : first + size] for name, value in batch.items()})
            (losses.mean() / accumulate).backward()
        parts.append({"loss": losses.detach(), **{name: value.detach() for name, value in numbers.items()}})
    every = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return every.pop("loss"), every


def _clip(weights: Sequence[Tensor], clip: float | None) -> Tensor:
    """Clip the gradient; its norm before that."""
    groups = by_sharding([weight for weight in weights if weight.grad is not None]) or [[]]
    norms = [nn.utils.get_total_norm([weight.grad for weight in each if weight.grad is not None]) for each in groups]
    norm = full(norms[0]) if len(norms) == 1 else torch.stack([full(each) for each in norms]).norm()
    # Where the number is free to read, skip a pass over all gradients that multiplies by 1. (Clipping adds 1e-6.)
    if clip is not None and not (norm.device.type in HOST_DEVICES and float(norm) + 1e-5 < clip):
        for each in groups:
            nn.utils.clip_grads_with_norm_(each, clip, norms[0] if len(norms) == 1 else norm)
    return norm


def _optimizer_step(objective: Objective, accepted: Tensor) -> bool:
    """Move the weights if the step is accepted, without waiting for a CUDA device; whether they may have moved."""
    optimizer: Any = objective.optimizer
    if accepted.device.type in HOST_DEVICES:
        if bool(accepted):
            optimizer.step()
        return bool(accepted)
    if optimizer.defaults.get("fused"):  # its kernels change nothing where found_inf is not 0
        optimizer.grad_scale, optimizer.found_inf = None, (~accepted).float()
        optimizer.step()
        optimizer.found_inf = None
    else:
        for weight in objective.weights:
            if weight.grad is not None:
                weight.grad.masked_fill_(~accepted, 0)
        optimizer.step()
    return True


@contextmanager
def _others_frozen(objective: Objective, model: Model) -> Iterator[None]:
    """Freeze the weights that the objective does not train."""
    own = {id(weight) for weight in objective.weights}
    frozen = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in own]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)


def _parallel(loss: _Loss, ranks: Ranks) -> nn.Module:
    """The loss, whose backward pass gives every process the mean of all gradients."""
    if ranks.world == 1 or in_shards(loss):
        return loss
    # Buffers are the same everywhere; newer versions of PyTorch have another name for this setting.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    alike: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(loss, gradient_as_bucket_view=True, **alike)


def _unsynchronised(loss: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay with the process for now. (Shards are reduced each time: a complete gradient may not fit.)"""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()


def cycle(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The loader's batches, epoch after epoch."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("expected a loader with at least one batch, got an empty one: is it a used-up generator?")
