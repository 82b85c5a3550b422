"""Muon: steps of matrices made orthogonal, and Adam for all other weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.training.adam import InMemoryOrder
from scorefield.training.distributed.shards import full, is_part

SMALLEST = 16  # rows and columns of a matrix; layers with fewer take Adam
ITERATIONS = 5
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # a x + b x^3 + c x^5, steep at 0 (Jordan et al. 2024)
FLOOR = 1e-16  # of the norm: the squares of smaller matrices underflow in float32
RMS = 0.2  # of an entry of Adam's steps, over the learning rate (Liu et al. 2025, Section 2.2)


def muon(module: nn.Module, adam: torch.optim.Optimizer, momentum: float = 0.9) -> "Muon":
    """`Muon` for the matrices of a module, with the rates and decays of its `adam`, which the other weights keep.

    Matrices are the weights of linear layers and convolutions with 16 rows and 16 columns at least. A learned path and
    embeddings have none.
    """
    chosen = _matrices(module)
    groups: list[dict[str, Any]] = []
    for group in adam.param_groups:
        for matrices in (False, True):
            weights = [weight for weight in group["params"] if (id(weight) in chosen) == matrices]
            groups += [{**group, "params": weights, "matrices": matrices, "momentum": momentum}] if weights else []
    # On CUDA the fused kernel leaves out a refused step by itself, which matrices cannot.
    fused = bool(adam.defaults["fused"]) and all(weight.device.type == "cpu" for weight in module.parameters())
    return Muon([{**group, "fused": fused} for group in groups], lr=adam.defaults["lr"], fused=fused)


class Muon(InMemoryOrder):
    """Momentum whose steps are orthogonal, for matrices W (rows, columns), and AdamW for other weights.

        M = mu M + G,    W = (1 - rate decay) W - 0.2 sqrt(max(rows, columns)) rate orthogonal(G + mu M)

    So every direction of a matrix moves by as much, also those of small gradients. The factor gives steps the size of
    Adam's, and one learning rate serves both. A kernel (out, in, H, W) is a matrix (out, in H W).

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is scalable
    for LLM training", Section 2.2.

    Its groups have "matrices", which tells which of the two they take, and "momentum", which is mu.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all weights that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._move(weight, group)
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, rate, mu = weight.grad, group["lr"], group["momentum"]
        assert gradient is not None
        state = self.state[weight]
        if not state:  # Adam's part expects a count of steps of every weight
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(weight))
        state["step"] += 1
        moving = state["momentum"].mul_(mu).add_(gradient)
        step = full(gradient.add(moving, alpha=mu))
        # As they lie in memory: the order of the columns does not matter.
        last = step.ndim == 4 and step.is_contiguous(memory_format=torch.channels_last)
        step = step.permute(0, 2, 3, 1) if last else step
        matrix = step.flatten(1)
        direction = orthogonal(matrix).view(step.shape)
        direction = _as_held(direction.permute(0, 3, 1, 2) if last else direction, weight)
        size = RMS * math.sqrt(max(matrix.shape))
        weight.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate * size)


def orthogonal(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, nearly: singular values become 0.7 to 1.2, and 0 stays 0.

    Newton and Schulz's iteration X = P X with P = a + b X X^T + c (X X^T)^2, from X / |X|. All P commute with X X^T, so
    it needs no X before its end. (Singular values below 1e-3 of the norm come nearer to 0.)
    """
    a, b, c = POLYNOMIAL
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / x.norm().clamp(min=FLOOR)
    squares = x @ x.T
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(iterations):
        p = torch.addmm(squares, squares, squares, beta=b, alpha=c).add_(identity, alpha=a)
        product, squares = p @ product, p @ squares @ p
    result: Tensor = product @ x
    return result.T if rows > columns else result


def _matrices(module: nn.Module) -> set[int]:
    """The ids of the weights that are matrices."""
    chosen = set()
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            weight = part.weight
            if min(len(weight), weight[0].numel()) >= SMALLEST:
                chosen.add(id(weight))
    learned = {id(weight) for part in module.modules() if isinstance(part, SDE) for weight in part.parameters()}
    return chosen - learned


def _as_held(tensor: Tensor, weight: Tensor) -> Tensor:
    """The tensor, or this process's part of it where that is what it holds of the weight."""
    if not is_part(weight):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # importing it takes most of a second

    held: Any = weight
    part: Tensor = distribute_tensor(tensor.contiguous(), held.device_mesh, held.placements)
    return part
