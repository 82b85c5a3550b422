"""From the probability of integers to densities: log P(k) >= E_q[log p(x) - log q(x | k)], for several q.

With K draws the bound is  log P(k) >= E log(1/K sum_i p(x_i) / q(x_i | k)).  It is tighter, and tends to log P(k) for
large K (Burda et al. 2016, "Importance weighted autoencoders", Eq. 8). x is a point of the path at t_min. P(k) is the
model's mass in the cell of k at that time.
"""

import abc
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import like, one_each, precise
from scorefield.sde_lib.quantise import cell_centres, cell_width, dequantise, place_in_cell
from scorefield.sde_lib.sde import Noise

WIDE = 3.0  # noises from a cell's centre to its end: the truncated normal leaves most of a wider cell empty
Flow = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (centres in [-1, 1], uniforms) -> u in [0, 1), log q(u)


class Dequantisation(abc.ABC):
    """A distribution q(x | k) of points in the cell of integers k.

    `samples` is K, the number of draws of each image for the importance-weighted bound.
    """

    samples: int

    @abc.abstractmethod
    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Noise, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """A draw x (B, *D) in float32, and log q(x | k) in nats, (B,) float64.

        Args:
            k: integers 0 .. levels - 1, (B, *D).
            levels: the number of levels.
            sde: the path; x is a point of it at t_min.
            uniform: source of uniform numbers on [0, 1), called with a tensor of their shape.
            low: lower end of the first cell, in the model's values.
            high: upper end of the last cell.
        """

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"expected samples of 1 or more, got {self}")


@dataclass(frozen=True)
class Uniform(Dequantisation):
    """Uniform in the cell: `dequantise` (Theis et al. 2016, Section 3.1)."""

    samples: int = 1

    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Noise, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        x, log_det = dequantise(k, levels, low=low, high=high, uniform=uniform)
        return x, -log_det.expand(len(k))


@dataclass(frozen=True)
class TruncatedNormal(Dequantisation):
    """The path's noise at t_min around the cell's centre, truncated to the cell. It needs no training.

        x = alpha x_k + sigma eps,    |sigma eps| < alpha (high - low) / (2 levels)

    A model that was trained on the levels themselves sees the inputs of its training (Zheng et al. 2023, "Improved
    techniques for maximum likelihood estimation for diffusion ODEs", Section 4.1). A model of dequantised values is
    flat in a cell: one draw then loses log(2 r) - log(2 pi e) / 2 nats a dimension, for a cell r noises to either side
    (0.37 for r = 3, 1.06 for r = 6). `Uniform` loses nothing there. Cells wider than 3 noises get a warning.
    """

    samples: int = 1

    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Noise, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = (float(scale) for scale in sde.scales(sde.t_min))
        reach = alpha * cell_width(levels, low=low, high=high) / (2 * sigma)
        if reach > WIDE:
            loss = math.log(2 * reach) - math.log(2 * math.pi * math.e) / 2
            warnings.warn(
                f"the noise at t_min, {sigma:.2g}, is small for a cell {2 * reach * sigma:.2g} wide: truncated_normal "
                f"loses up to {loss:.2f} nats a dimension unless the network was trained on the levels: use uniform",
                stacklevel=2,
            )
        inside = math.erf(reach / math.sqrt(2))
        u = precise(like(uniform(cell_centres(k, levels)), k, "the uniform numbers"))
        eps = torch.special.ndtri((1 - inside) / 2 + inside * u).clamp(-reach, reach)
        log_q = -(eps.square() / 2 + math.log(sigma * inside * math.sqrt(2 * math.pi))).flatten(1).sum(1)
        place = 0.5 + eps / (2 * reach)
        return place_in_cell(k, place, levels, low=alpha * low, high=alpha * high), log_q


@dataclass(frozen=True)
class Variational(Dequantisation):
    """A conditional flow that was trained for the model (Ho et al. 2019, Flow++, Section 3.1).

    Args:
        flow: (centres (B, *D) in [-1, 1], uniforms) -> u in [0, 1) and its log-density in nats, (B,).
    """

    flow: Flow
    samples: int = 1

    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Noise, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        centre = cell_centres(k, levels)
        with torch.no_grad():
            u, log_q = self.flow(centre, like(uniform(centre), k, "the uniform numbers"))
        log_q = one_each(log_q, len(k), "the flow's log_q")
        x, log_det = dequantise(k, levels, low=low, high=high, uniform=lambda _: u.to(centre))
        return x, log_q.double() - log_det


def importance_bound(log_weights: Tensor) -> Tensor:
    """The bound from log p(x_i) - log q(x_i | k), (K, B): the logarithm of the mean weight, (B,).

    It warns where the K weights are worth less than half of as many equal ones: q is then far from p in the cells.
    """
    if len(log_weights) > 1 and log_weights.shape[1] > 0:
        worth = float(effective_draws(log_weights).mean())
        if worth < len(log_weights) / 2:
            warnings.warn(
                f"the {len(log_weights)} draws of dequantisation are worth {worth:.1f} equal ones, so log P(k) may be "
                "well above this bound: compare uniform, truncated_normal and variational, or take more samples",
                stacklevel=2,
            )
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def effective_draws(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of log-weights (K, B): the number of equal weights that are worth as much, (B,).

    Kong 1992, "A note on importance sampling using standardized weights".
    """
    return (2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)).exp()
