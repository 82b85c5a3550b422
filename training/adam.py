"""Adam, in one kernel where torch has it."""

from typing import Any

import torch
from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.training.model import Model


def adam(
    module: nn.Module,
    learning_rate: float = 2e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_biases: bool = True,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), in one kernel where torch has it: one pass over weights, gradients and moments.

    Weight decay is apart from the gradient (AdamW, Loshchilov and Hutter 2019). A learned path has none,
    and biases have none where `decay_biases` is false (Kingma et al. 2021). Each part of a `Model` is a group.
    """
    parts = list(module.children()) if isinstance(module, Model) else [module]
    groups: list[dict[str, Any]] = []
    for part in parts:
        kept, decayed = list[nn.Parameter](), list[nn.Parameter]()
        for name, weight in part.named_parameters():
            decays = decay_biases or (weight_decay > 0 and name.split(".")[-1] != "bias")
            (decayed if decays and not isinstance(part, SDE) else kept).append(weight)
        groups += [{"params": decayed}] if decayed else []
        groups += [{"params": kept, "weight_decay": 0.0}] if kept else []
    weights = list(module.parameters())
    fused = all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights)
    kind = InMemoryOrder if all(w.device.type == "cpu" for w in weights) else torch.optim.AdamW
    return kind(groups, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


class InMemoryOrder(torch.optim.AdamW):
    """Adam whose gradients and moments have the memory order of the weights.

    The kernel on CPUs ignores strides, and copies tensors that are not contiguous. So channels-last tensors are passed
    as (out, H, W, in), which is contiguous.
    """

    def _init_group(self, group: dict[str, Any], *tensors: list[Tensor]) -> bool:
        complex_ = bool(super()._init_group(group, *tensors))  # type: ignore[no-untyped-call]
        weights, gradients, *moments, _ = tensors
        moments = [each for each in moments if each]
        for i, weight in enumerate(weights):
            if not _alike(weight, gradients[i]):
                gradients[i] = torch.empty_like(weight).copy_(gradients[i])
            for of_weight in moments:
                if not _alike(weight, of_weight[i]):
                    of_weight[i].data = torch.empty_like(weight).copy_(of_weight[i])
            if weight.ndim == 4 and not weight.is_contiguous() and weight.permute(0, 2, 3, 1).is_contiguous():
                for of_weight in (weights, gradients, *moments):
                    of_weight[i] = of_weight[i].permute(0, 2, 3, 1)
        return complex_


def _alike(weight: Tensor, x: Tensor) -> bool:
    """Whether both have the same order in memory."""
    return x.stride() == weight.stride() or (x.is_contiguous() and weight.is_contiguous())
