"""A training state in shards: each device holds its part of every weight, average and moment (PyTorch's FSDP2)."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from scorefield.training.distributed.blocks import blocks_of
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.engine import TrainingState


class Averages(Protocol):
    """What has averages of the weights."""

    models: list[Any]


Some = TypeVar("Some", bound=Averages | None)
Average = TypeVar("Average", bound=Averages)


class Sharding:
    """Shards a state's weights, averages and optimiser over the processes, in place (Zhao et al. 2023, "PyTorch FSDP").

    Each process then holds a share of every tensor, and gathers a block's weights when it needs them. Call it after a
    checkpoint has been loaded. `whole` gives a state to save or to sample from.

    Args:
        state: whole, and the same on every process.
        others: further averages, to be sharded in the same way.
    """

    def __init__(self, state: TrainingState, *others: Averages) -> None:
        weights = list(state.denoiser.parameters())
        # What the network is but for its weights, which would not fit.
        self._blank = copy.deepcopy(state.denoiser, {id(w): nn.Parameter(w.to("meta")) for w in weights})
        for model in [state.denoiser, *(model for each in (state.ema, *others) for model in each.models)]:
            _shard(model)
        _follow(state.optimizer, weights, list(state.denoiser.parameters()))
        state.sharding = self

    def whole(self, state: TrainingState) -> TrainingState:
        """The state as one process would have it, on the CPU; every process must ask, and only the first is told.

        The weights and moments of the others' are on the device "meta".
        """
        denoiser = self._gathered(state.denoiser, averaged=False)
        kind: Any = type(state.optimizer)
        optimizer = kind(denoiser.parameters(), lr=0.0)
        optimizer.load_state_dict(_gathered(state.optimizer.state_dict()))  # which tells the rest of its settings
        ema = self.whole_averages(state.ema)
        return TrainingState(denoiser, optimizer, ema, state.generator, state.step, state.images)

    def whole_averages(self, averages: Average) -> Average:
        """The same of averages."""
        found = copy.copy(averages)
        found.models = [self._gathered(model, averaged=True) for model in averages.models]
        return found

    def _gathered(self, model: nn.Module, averaged: bool) -> nn.Module:
        pairs = zip(self._blank.parameters(), model.parameters(), strict=True)
        memo = {id(blank): nn.Parameter(_gathered(sharded.detach())) for blank, sharded in pairs}
        found = copy.deepcopy(self._blank, memo)
        for ours, current in zip(found.buffers(), model.buffers(), strict=True):
            ours.copy_(current)
        return found.eval().requires_grad_(False) if averaged else found


def whole(state: TrainingState, others: Some) -> tuple[TrainingState, Some]:
    """A state and further averages (or None) to save: themselves, or gathered where they are in shards.

    Every process must ask; see `Sharding.whole`.
    """
    if state.sharding is None:
        return state, others
    return state.sharding.whole(state), others if others is None else state.sharding.whole_averages(others)


def _shard(model: nn.Module) -> None:
    # Imported here: it takes most of a second, which only those who shard should wait for.
    from torch.distributed.fsdp import fully_shard

    for weight in model.parameters():
        weight.data = weight.data.contiguous()  # FSDP takes no other order, such as channels-last
    for block in blocks_of(model):
        fully_shard(block)
    fully_shard(model)


def _follow(optimizer: torch.optim.Optimizer, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Have the optimiser work on the shards, with its share of the moments."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    new = {id(old): shard for old, shard in zip(before, after, strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [new[id(weight)] for weight in group["params"]]
    for old, shard in zip(before, after, strict=True):
        assert isinstance(shard, DTensor)
        found = optimizer.state.pop(old, {})
        for key, value in found.items():
            if isinstance(value, Tensor) and value.shape == shard.shape:
                found[key] = distribute_tensor(value.contiguous(), shard.device_mesh, shard.placements)
        if found:
            optimizer.state[shard] = found


def _gathered(tree: Any) -> Any:
    """Every tensor in shards made whole, on the CPU of the first process and on "meta" elsewhere."""
    if hasattr(tree, "full_tensor"):
        return tree.full_tensor().to("cpu" if Ranks.current().first else "meta")
    if isinstance(tree, dict):
        return {key: _gathered(value) for key, value in tree.items()}
    return [_gathered(value) for value in tree] if isinstance(tree, list) else tree
