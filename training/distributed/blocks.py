"""A network's blocks: the units that are recomputed in the backward pass, or sharded over devices."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The members of the network's innermost `nn.ModuleList`s that are made of several layers."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    innermost = [each for each in lists if sum(isinstance(m, nn.ModuleList) for m in each.modules()) == 1]
    members = (member for each in innermost for member in each)
    return [m for m in members if any(True for _ in m.children()) and any(True for _ in m.parameters())]


@contextmanager
def recomputing(network: nn.Module, active: bool = True) -> Iterator[None]:
    """Within it the blocks keep their inputs alone, and compute the rest again when the backward pass needs it.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The gradients are the same to the bit: dropout
    draws its numbers again from the same random state.
    """
    blocks = blocks_of(network) if active else []
    for block in blocks:
        # A method bound to the block, so that a copy of the network has its own.
        block.forward = types.MethodType(_recomputed, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is left


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(type(block).forward, block, *args, use_reentrant=False, **kwargs)
