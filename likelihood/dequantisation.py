"""From the probability of integers to densities: log P(k) >= E_q[log p(x) - log q(x | k)], for several q.

With K draws the bound is  log P(k) >= E log(1/K sum_i p(x_i) / q(x_i | k)), tighter and in the limit P(k) itself (Burda
et al. 2016, "Importance weighted autoencoders", Eq. 8). x is the path's point at t_min, and P(k) the model's mass in
the cell of k there.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.quantise import cell_centres, dequantise

Uniforms = Callable[[Tensor], Tensor]
Flow = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (centres in [-1, 1], uniforms) -> u in [0, 1), log q(u)


class Dequantisation(abc.ABC):
    """A distribution q(x | k) of points in the cell of integers k.

    `samples` is K: draws of each image, for the importance-weighted bound.
    """

    samples: int

    @abc.abstractmethod
    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Uniforms, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """A draw x (B, *D) in float32, and log q(x | k) in nats, (B,) float64.

        Args:
            k: integers 0 .. levels - 1, (B, *D).
            levels: how many.
            sde: the path, whose point at t_min x is.
            uniform: source of uniforms on [0, 1), called with a tensor of their shape.
            low: where the first cell begins, in the model's values.
            high: where the last one ends.
        """

    def _check(self) -> None:
        if self.samples < 1:
            raise ValueError(f"expected samples of 1 or more, got {self}")


@dataclass(frozen=True)
class Uniform(Dequantisation):
    """Anywhere in the cell: `dequantise` (Theis et al. 2016, Section 3.1)."""

    samples: int = 1

    def __post_init__(self) -> None:
        self._check()

    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Uniforms, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        x, log_det = dequantise(k, levels, low=low, high=high, uniform=uniform)
        return x, torch.full((len(k),), -float(log_det), dtype=torch.float64)


@dataclass(frozen=True)
class TruncatedNormal(Dequantisation):
    """The path's own noise at t_min about the cell's centre, cut off at the cell's ends: it needs no training.

        x = alpha x_k + sigma eps,    |sigma eps| < alpha (high - low) / (2 levels)

    It meets a model that was trained on bare levels where it was trained (Zheng et al. 2023, "Improved techniques for
    maximum likelihood estimation for diffusion ODEs", Section 4.1).
    """

    samples: int = 1

    def __post_init__(self) -> None:
        self._check()

    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Uniforms, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        centre = cell_centres(k, levels, low=low, high=high)
        alpha, sigma = (float(scale) for scale in sde.scales(sde.t_min))
        reach = alpha * (high - low) / (2 * levels * sigma)
        inside = math.erf(reach / math.sqrt(2))
        u = uniform(centre).double()
        eps = torch.special.ndtri((1 - inside) / 2 + inside * u).clamp(-reach, reach)
        log_q = -(eps.square() / 2 + math.log(sigma * inside * math.sqrt(2 * math.pi))).flatten(1).sum(1)
        return (alpha * centre.double() + sigma * eps).float(), log_q


@dataclass(frozen=True)
class Variational(Dequantisation):
    """By a conditional flow that was trained for the model (Ho et al. 2019, Flow++, Section 3.1).

    Args:
        flow: (centres (B, *D) in [-1, 1], uniforms) -> u in [0, 1) and its log-density in nats, (B,).
    """

    flow: Flow
    samples: int = 1

    def __post_init__(self) -> None:
        self._check()

    def __call__(
        self, k: Tensor, levels: int, sde: SDE, uniform: Uniforms, *, low: float = -1.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        centre = cell_centres(k, levels)
        with torch.no_grad():
            u, log_q = self.flow(centre, uniform(centre))
        x, log_det = dequantise(k, levels, low=low, high=high, uniform=lambda _: u.to(centre))
        return x, log_q.double() - float(log_det)


def combined(log_weights: Tensor) -> Tensor:
    """The bound from log p(x_i) - log q(x_i | k), (K, B):  log of their mean weight, (B,)."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
