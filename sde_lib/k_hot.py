"""Codes of m bits of which exactly k are one, and the distributions q(c) proportional to exp(logits . c) over them.

Draws, marginals and divergence are exact: sums over all subsets are recursions over the bits. A draw passes its
gradient on as that of the marginals (Ahmed et al. 2023, "SIMPLE: A gradient estimator for k-subset sampling").
"""

import math

import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import like, precise

NEVER = -1e30  # log of zero, finite so that gradients are


def k_hot(logits: Tensor, k: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A draw c of q, and KL(q || uniform) over the codes of k ones among m.

    Args:
        logits: (B, m).
        k: the number of ones, 1 to m.
        uniform: numbers on [0, 1), (B, m).

    Returns:
        c in float64, (B, m), whose gradient is that of E[c]; and the divergence in nats, (B,).
    """
    logits, uniform = precise(logits), like(uniform, logits, "the uniform numbers")
    before, after = _sums(logits, k), _sums(logits.flip(1), k).flip(1)
    total = before[:, -1, k]
    with_bit = (before[:, :-1, :k] + after[:, 1:, :k].flip(2)).logsumexp(2)
    mean = (logits + with_bit - total[:, None]).exp()
    codes = math.comb(logits.shape[1], k)
    kl = (mean * logits).sum(1) - total + math.log(codes)
    drawn = _draw(logits.detach(), before.detach(), k, uniform.to(logits))
    return drawn + (mean - mean.detach()), kl


def _sums(logits: Tensor, k: int) -> Tensor:
    """Log of the sum of exp(logits . c) over the codes of r ones among the first i bits, (B, m + 1, k + 1)."""
    row = torch.full((len(logits), k + 1), NEVER, dtype=logits.dtype, device=logits.device)
    row[:, 0] = 0
    rows = [row]
    for logit in logits.unbind(1):
        row = torch.cat([row[:, :1], torch.logaddexp(row[:, 1:], row[:, :-1] + logit[:, None])], 1)
        rows.append(row)
    return torch.stack(rows, 1)


def _draw(logits: Tensor, before: Tensor, k: int, uniform: Tensor) -> Tensor:
    """A code, bit by bit from the last one."""
    left = torch.full((len(logits), 1), k, device=logits.device)
    bits = []
    for i in range(logits.shape[1], 0, -1):
        others = before[:, i - 1].gather(1, (left - 1).clamp(min=0))[:, 0]
        probability = (others + logits[:, i - 1] - before[:, i].gather(1, left)[:, 0]).exp()
        chosen = ((uniform[:, i - 1] < probability) | (left[:, 0] == i)) & (left[:, 0] > 0)
        left = left - chosen[:, None].long()
        bits.append(chosen)
    return torch.stack(bits[::-1], 1).to(logits)
