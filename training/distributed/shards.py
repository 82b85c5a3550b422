"""Tensors of which each process holds a part (PyTorch's DTensor), beside tensors that are complete everywhere.

The test for a part is `hasattr`, because importing torch.distributed.tensor takes most of a second.
"""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def is_part(tensor: Any) -> bool:
    """Whether each process holds a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def in_shards(module: nn.Module) -> bool:
    """Whether any weight is in shards."""
    return any(is_part(weight) for weight in module.parameters())


def full(tensor: Any) -> Tensor:
    """The complete tensor; for one in shards every process must call."""
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[no-any-return]


def by_sharding(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in shards, and the complete ones: torch's multi-tensor functions do not mix them. No empty list."""
    groups: tuple[list[Tensor], list[Tensor]] = [], []
    for tensor in tensors:
        groups[not is_part(tensor)].append(tensor)
    return [group for group in groups if group]


def mean_over_ranks(tensors: Sequence[Tensor | None]) -> None:
    """Replace each complete tensor by its mean over the processes, in place; FSDP has done so for the shards."""
    for tensor in tensors:
        if tensor is not None and not is_part(tensor):
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
