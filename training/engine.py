"""The training loop, as a generator: whoever calls it owns logging and saving."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scorefield.sde_lib import SDE
from scorefield.training import times as times_
from scorefield.training import weighting
from scorefield.training.adam import adam
from scorefield.training.averages.ema import EMA
from scorefield.training.distributed.blocks import recomputing
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.objectives.dsm import dsm_loss
from scorefield.training.times import Times
from scorefield.training.weighting import Weighting

if TYPE_CHECKING:
    from scorefield.training.distributed.sharding import Sharding

Batch = Tensor | dict[str, Tensor]
HOST_DEVICES = ("cpu",)  # devices that can be asked without waiting


class Step(NamedTuple):
    """What happened in a step. The tensors are left on their device: read them when you need them.

    Where several processes train together, loss, losses, times and batch are of this one's rows: `Ranks.mean` and
    `Ranks.together` give those of all.

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
        optimizer: by default `adam` at 2e-4 (Ho et al. 2020).
        ema: by default of decay 0.9999.
        generator: of times and noise, on the denoiser's device; by default seeded with 0.
        step, images: how far it has come.
        sharding: what put it in shards, if it is.
    """

    denoiser: nn.Module
    optimizer: torch.optim.Optimizer = field(default=None)  # type: ignore[assignment]
    ema: EMA[nn.Module] = field(default=None)  # type: ignore[arg-type]
    generator: Generator = field(default=None)  # type: ignore[assignment]
    step: int = 0
    images: int = 0
    sharding: "Sharding | None" = None

    def __post_init__(self) -> None:
        self.optimizer = self.optimizer or adam(self.denoiser)
        self.ema = self.ema or EMA(self.denoiser)
        device = next(self.denoiser.parameters()).device
        self.generator = self.generator or Generator(device).manual_seed(0)


def finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """Whether a step may be taken: its gradient is finite, which all processes agree on."""
    return grad_norm.isfinite()


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
    accumulate: int = 1,
    recompute: bool = False,
    sound: Callable[[Tensor, Tensor], Tensor] = finite,
) -> Iterator[Step]:
    """Steps of denoising score matching until `images` have been seen, one record a step.

    Where torch.distributed has been started, its processes train together (DistributedDataParallel; `Sharding` puts
    a state in shards instead). Each must be given the same loader, state and arguments. Batches, times and noise are
    those of one process, and each takes its rows of them, so neither the number of processes nor `accumulate` changes
    what is learned but by rounding, and by dropout, which every process draws from its own torch seed.

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
        accumulate: the parts that a batch is taken in, one after another, for less memory.
        recompute: compute the blocks' activations again in the backward pass, for less memory still.
        sound: whether a step may be taken, () of bool, from its loss and its gradient's norm before clipping, (); it is
            asked once a step. A step that is not sound leaves weights, moments and averages as they are (but on CUDA:
            averages go on towards those weights, and an optimiser that is not fused moves them by its moments).

    Raises:
        ValueError: if the loader has nothing to give, or a batch does not divide by the processes and `accumulate`.
    """
    if accumulate < 1:
        raise ValueError(f"expected training.accumulate to be at least 1, got {accumulate}")
    state, ranks = state or TrainingState(denoiser), Ranks.current()
    device = next(denoiser.parameters()).device
    rates = [group.setdefault("initial_lr", group["lr"]) for group in state.optimizer.param_groups]
    batches = cycle(loader)
    parallel = _parallel(denoiser, ranks)
    denoiser.train()
    with recomputing(denoiser, recompute):
        while state.images < images:
            given = next(batches)
            shape = _x0(given).shape
            own = ranks.rows(shape[0], accumulate)
            x0, cond = _split(_rows(given, own), device)
            factor = schedule(state.images)
            for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

            t = times(sde, shape[0], state.generator)[own]
            eps = torch.randn(shape, generator=state.generator, device=device, dtype=x0.dtype)[own]
            batch = {"x0": x0, "eps": eps, **cond}

            def losses_of(rows: slice, t: Tensor = t, batch: dict[str, Tensor] = batch) -> Tensor:
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    part = {key: value[rows] for key, value in batch.items()}
                    return dsm_loss(parallel, sde, t=t[rows], weight=weight, **part)

            state.optimizer.zero_grad(set_to_none=True)
            losses = _backward(parallel, losses_of, len(x0), accumulate)
            norm = _clipped(denoiser, clip)
            loss = losses.mean()
            _take(state, denoiser, sound(loss, norm))

            state.step += 1
            state.images += shape[0]
            rate = float(state.optimizer.param_groups[0]["lr"])
            yield Step(state.step, state.images, loss, norm, rate, losses, t, batch)


def _clipped(denoiser: nn.Module, clip: float | None) -> Tensor:
    """The gradient's norm, before it is clipped."""
    weights = [weight for weight in denoiser.parameters() if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    # Where asking is free, no pass over all gradients to multiply them by 1 (clipping divides by norm + 1e-6).
    if clip is not None and not (norm.device.type in HOST_DEVICES and float(_whole(norm)) + 1e-5 < clip):
        nn.utils.clip_grads_with_norm_(weights, clip, norm)
    return _whole(norm)


def _take(state: TrainingState, denoiser: nn.Module, sound: Tensor) -> None:
    """Move the weights and their averages, unless that is not sound; a CUDA device is told, not waited for."""
    optimizer: Any = state.optimizer
    if sound.device.type in HOST_DEVICES:
        if not bool(sound):
            return
        optimizer.step()
    elif optimizer.defaults.get("fused"):  # its kernels leave all as it is where found_inf is not 0
        optimizer.grad_scale, optimizer.found_inf = None, (~sound).float()
        optimizer.step()
        optimizer.found_inf = None
    else:
        for weight in denoiser.parameters():
            if weight.grad is not None:
                weight.grad.masked_fill_(~sound, 0)
        optimizer.step()
    state.ema.update(denoiser)


def _backward(parallel: nn.Module, losses_of: Callable[[slice], Tensor], rows: int, accumulate: int) -> Tensor:
    """The losses of the rows, taken in parts; the gradient of their mean is left in the weights."""
    losses, size = [], rows // accumulate
    for first in range(0, rows, max(size, 1)):
        last = first + size >= rows
        with nullcontext() if last else _unsynchronised(parallel):
            part = losses_of(slice(first, first + size))
            (part.mean() / accumulate).backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())
    return torch.cat(losses)


def _in_shards(tensor: Tensor) -> bool:
    # Asked so, because to import torch.distributed.tensor takes most of a second.
    return hasattr(tensor, "full_tensor")


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if _in_shards(tensor) else tensor  # type: ignore[no-any-return]


def _parallel(denoiser: nn.Module, ranks: Ranks) -> nn.Module:
    """The denoiser, whose backward pass gives every process the mean of all gradients."""
    if ranks.world == 1 or _in_shards(next(denoiser.parameters())):
        return denoiser
    # Buffers are the same everywhere; newer versions of PyTorch have another word for leaving them alone.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    alike: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(denoiser, gradient_as_bucket_view=True, **alike)


def _unsynchronised(parallel: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay with the process for now. (Shards are reduced each time: a whole gradient may not fit.)"""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()


def cycle(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The loader's batches, epoch after epoch."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("expected a loader with at least one batch, got an empty one: is it a used-up generator?")


def _x0(batch: Batch) -> Tensor:
    if isinstance(batch, dict) and "x0" not in batch:
        raise ValueError(f'expected a batch to be a tensor or a dict with "x0", got the keys {sorted(batch)}')
    return batch if isinstance(batch, Tensor) else batch["x0"]


def _rows(batch: Batch, rows: slice) -> Batch:
    return batch[rows] if isinstance(batch, Tensor) else {key: value[rows] for key, value in batch.items()}


def _split(batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    x0 = _x0(batch).to(device, non_blocking=True)
    named = {} if isinstance(batch, Tensor) else batch
    return x0, {key: value.to(device, non_blocking=True) for key, value in named.items() if key != "x0"}
