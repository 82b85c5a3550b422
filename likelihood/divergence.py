"""The divergence of a field: exact, or by random probes."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from sde_lib.sde import Noise

Field = Callable[[Tensor], Tensor]
MODES = ("reverse", "forward")
DISTRIBUTIONS = ("rademacher", "gaussian")


class Divergence(abc.ABC):
    """tr J of a field `(B, *D) -> (B, *D)` at x, where no sample's value depends on another's.

    `mode` is "reverse" (vector-Jacobian products that share one forward pass) or "forward"
    (Jacobian-vector products). `chunk` directions are followed at once.
    """

    mode: str
    chunk: int
    shared: ClassVar[bool]  # whether all samples look along the same directions

    @abc.abstractmethod
    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        """The v to look along, kept for a whole trajectory: (P, B, *D), or (P, 1, *D) for all samples alike."""

    @abc.abstractmethod
    def estimates(self, products: Tensor) -> Tensor:
        """The products v . J v (P, B), as E estimates of the trace, (E, B)."""

    def __call__(self, field: Field, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The field at x, (B, *D), and the estimates of its divergence, (B, E)."""
        value, pull = vjp(field, x)[:2]

        def product(v: Tensor) -> Tensor:
            v = v.expand_as(x)
            along: Tensor = pull(v)[0] if self.mode == "reverse" else jvp(field, (x,), (v,))[1]
            return (v * along).flatten(1).sum(1)

        products: Tensor = vmap(product, chunk_size=self.chunk)(directions)
        return value, self.estimates(products).T

    def _check(self) -> None:
        if self.mode not in MODES or self.chunk < 1:
            raise ValueError(f"expected mode 'reverse' or 'forward' and a chunk of 1 or more, got {self}")


@dataclass(frozen=True)
class Exact(Divergence):
    """sum_i e_i . J e_i, for any shape: as many derivatives as a sample has dimensions."""

    mode: str = "reverse"
    chunk: int = 32
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check()

    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        dims = x[0].numel()
        return torch.eye(dims, dtype=x.dtype, device=x.device).reshape(dims, 1, *x.shape[1:])

    def estimates(self, products: Tensor) -> Tensor:
        return products.sum(0, keepdim=True)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """v . J v for random v with E[v v^T] = 1: unbiased  (Hutchinson 1990; Grathwohl et al. 2019, Eq. 7).

    Args:
        probes: how many v; two or more give each sample a standard error.
        distribution: of v, "rademacher" or "gaussian".
    """

    probes: int = 1
    distribution: str = "rademacher"
    mode: str = "reverse"
    chunk: int = 32
    shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check()
        if self.distribution not in DISTRIBUTIONS or self.probes < 1:
            raise ValueError(f"expected {' or '.join(DISTRIBUTIONS)} and 1 probe or more, got {self}")

    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        normals = torch.stack([noise(x) for _ in range(self.probes)])
        return normals if self.distribution == "gaussian" else torch.where(normals < 0, -1.0, 1.0).to(x)

    def estimates(self, products: Tensor) -> Tensor:
        return products
