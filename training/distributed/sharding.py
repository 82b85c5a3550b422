"""A training state in shards: each process holds its part of every weight, average and moment (PyTorch's FSDP2)."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from scorefield.training.distributed.blocks import blocks_of
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.shards import is_part
from scorefield.training.model import Model
from scorefield.training.state import TrainingState


class Averages(Protocol):
    """Averages of the weights."""

    models: list[Any]


Average = TypeVar("Average", bound=Averages)


def shard(state: TrainingState, *others: Averages) -> "Shards":
    """Divide a state's weights, averages and moments over the processes, in place (Zhao et al. 2023, "PyTorch FSDP").

    Each process then holds a part of every tensor, and gathers a block's weights when it needs them. A learned path
    stays complete on every process: it has few weights, and its functions are not one `forward`. Call this after a
    checkpoint has been loaded.

    Args:
        state: complete, and the same on every process.
        others: further averages, to be divided in the same way.
    """
    weights = list(state.model.parameters())
    # The model without its weights, which would not fit.
    memo = {id(w): nn.Parameter(w.to("meta"), requires_grad=w.requires_grad) for w in weights}
    blank = copy.deepcopy(state.model, memo)
    for model in [state.model, *(model for each in (state.ema, *others) for model in each.models)]:
        _shard(model)
    for optimizer in state.optimizers:
        _follow(optimizer, weights, list(state.model.parameters()))
    return Shards(blank)


class Shards:
    """What `shard` returns: it gathers the complete tensors again, to save them.

    Args:
        blank: the model, its weights on the device "meta".
    """

    def __init__(self, blank: Model) -> None:
        self._blank = blank

    def gather(self, state: TrainingState) -> TrainingState:
        """The state as one process would have it, on the CPU of the first process; every process must call.

        On the other processes weights and moments are on the device "meta".
        """
        model = self._gathered(state.model)
        new = {id(old): weight for old, weight in zip(state.model.parameters(), model.parameters(), strict=True)}
        optimizers = []
        for optimizer in state.optimizers:
            groups = [{"params": [new[id(w)] for w in group["params"]]} for group in optimizer.param_groups]
            kind: Any = type(optimizer)
            optimizers.append(kind(groups, lr=0.0))
            optimizers[-1].load_state_dict(_gathered(optimizer.state_dict()))  # which has the other settings
        ema = self.gather_averages(state.ema)
        first, *more = optimizers
        return TrainingState(model, first, ema, state.generator, state.step, state.images, tuple(more), state.times)

    def gather_averages(self, averages: Average) -> Average:
        """The averages as one process would have them; every process must call."""
        gathered = copy.copy(averages)
        gathered.models = [self._gathered(model).eval().requires_grad_(False) for model in averages.models]
        return gathered

    def _gathered(self, model: nn.Module) -> Any:
        blank = self._blank if isinstance(model, Model) else self._blank.denoiser
        pairs = zip(blank.parameters(), model.parameters(), strict=True)
        memo = {id(old): nn.Parameter(_gathered(w.detach()), requires_grad=old.requires_grad) for old, w in pairs}
        gathered = copy.deepcopy(blank, memo)
        for ours, current in zip(gathered.buffers(), model.buffers(), strict=True):
            ours.copy_(current)
        return gathered


def _shard(model: nn.Module) -> None:
    # Imported here: it takes most of a second.
    from torch.distributed.fsdp import fully_shard

    parts = [part for name, part in model.named_children() if name != "sde"] if isinstance(model, Model) else [model]
    for part in parts:
        for weight in part.parameters():
            weight.data = weight.data.contiguous()  # FSDP takes no other order, such as channels-last
        for block in blocks_of(part):
            fully_shard(block)
        fully_shard(part)


def _follow(optimizer: torch.optim.Optimizer, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Have the optimiser work on the shards, with its part of the moments."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    new = {id(old): weight for old, weight in zip(before, after, strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [new[id(weight)] for weight in group["params"]]
    for old, weight in zip(before, after, strict=True):
        moments = optimizer.state.pop(old, {})
        for key, value in moments.items():
            if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
                moments[key] = distribute_tensor(value.contiguous(), weight.device_mesh, weight.placements)
        if moments:
            optimizer.state[weight] = moments


def _gathered(tree: Any) -> Any:
    """Every tensor in shards made complete, on the CPU of the first process and on "meta" elsewhere."""
    if is_part(tree):
        return tree.full_tensor().to("cpu" if Ranks.current().first else "meta")
    if isinstance(tree, dict):
        return {key: _gathered(value) for key, value in tree.items()}
    return [_gathered(value) for value in tree] if isinstance(tree, list) else tree
