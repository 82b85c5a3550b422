"""A density over the noise levels of a path, to draw times from and to undo the choice by weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import precise
from scorefield.sde_lib.sde import SDE


@dataclass(frozen=True)
class LevelDensity:
    """A density that is constant in bins of equal width over the log-SNR's range, from the data to the noise.

    Args:
        probability: of each bin, (bins,), positive, of sum 1.
    """

    probability: Tensor

    def position(self, u: Tensor) -> Tensor:
        """The share of the range that has passed, in [0, 1], whose distribution function is u, (n,)."""
        probability = self.probability.to(u)
        edges = probability.cumsum(0)
        u = u * edges[-1]
        i = torch.searchsorted(edges, u, right=True).clamp(max=len(edges) - 1)
        inside = (u - (edges[i] - probability[i])) / probability[i]
        return (i + inside.clamp(0, 1)) / len(edges)

    def weight(self, position: Tensor) -> Tensor:
        """1 over the density of the position, (n,): the mean of weight times f(position) is the uniform one of f."""
        probability = self.probability.to(position)
        return 1 / (len(probability) * probability[bin_of(position, len(probability))])


def bin_of(position: Tensor, bins: int) -> Tensor:
    """The bin of a position in [0, 1], int64."""
    return (position * bins).long().clamp(0, bins - 1)


def log_snr_ends(sde: SDE) -> tuple[float, float]:
    """The log-SNR next to the data, and at the noisy end."""
    with torch.no_grad():
        high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    return high, low


def position_of(sde: SDE, log_snr: Tensor) -> Tensor:
    """The share of the log-SNR's range that has passed at these log-SNRs, from 0 next to the data to 1."""
    high, low = log_snr_ends(sde)
    return ((high - precise(log_snr)) / (high - low)).clamp(0, 1)
