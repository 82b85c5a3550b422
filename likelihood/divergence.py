"""The divergence of a field: exact, or by random probes."""

import abc
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import jvp, vmap

from scorefield.sde_lib.broadcast import like
from scorefield.sde_lib.sde import Noise

Field = Callable[[Tensor], Tensor]
Products = Callable[[Tensor], Tensor]  # directions v (P, B, *D) -> J v or J^T v, (P, B, *D)
MODES = ("reverse", "forward")
DISTRIBUTIONS = ("rademacher", "gaussian", "orthogonal")


class Divergence(abc.ABC):
    """tr J of a field `(B, *D) -> (B, *D)` at x, where no sample's value depends on another's.

    `mode` is "reverse" for vector-Jacobian products or "forward" for Jacobian-vector products. In reverse mode with
    one probe, the field and its divergence cost two evaluations of the field. A network without a forward mode, as
    some attention kernels have none, is differentiated in reverse mode with a warning. So is every network where the
    result is to be differentiated: PyTorch's forward mode through layer_norm loses a part of that gradient. `chunk` is
    the number of directions in one product.
    """

    mode: str
    chunk: int
    shared: ClassVar[bool]  # whether the directions are fixed, and the same for all samples

    @abc.abstractmethod
    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        """The directions v: (P, B, *D), or (P, 1, *D) where all samples share them."""

    @abc.abstractmethod
    def estimates(self, products: Products, directions: Tensor) -> Tensor:
        """E estimates of the trace, (E, B)."""

    @property
    def count(self) -> int:
        """E, the number of estimates."""
        return 1

    def __call__(
        self, field: Field, x: Tensor, directions: Tensor, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The field at x, (B, *D), and the estimates of its divergence, (B, E); with their graph if differentiable."""
        if self.mode == "forward" and not differentiable:
            try:
                return self._forward(field, x, directions)
            except (RuntimeError, NotImplementedError) as error:
                if not any(word in str(error).lower() for word in ("forward", "functorch", "vmap")):
                    raise
                warnings.warn(f"this network has no forward mode, using reverse mode: {error}", stacklevel=2)
        with torch.enable_grad():
            start = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            value = field(start)

            def pull(v: Tensor) -> Tensor:
                keep = {"retain_graph": True, "create_graph": differentiable, "materialize_grads": True}
                if len(v) == 1:
                    return torch.autograd.grad(value, start, v[0], **keep)[0][None]
                if differentiable:  # is_grads_batched has no graph through group_norm, vmap no fused attention
                    return vmap(lambda u: torch.autograd.grad(value, start, u, **keep)[0])(v)
                try:
                    return torch.autograd.grad(value, start, v, is_grads_batched=True, **keep)[0]
                except RuntimeError:  # an operation that cannot be batched, as channels-last norms in training
                    return torch.stack([torch.autograd.grad(value, start, u, **keep)[0] for u in v])

            estimates = self.estimates(self._chunked(pull, x), directions).T
        return (value, estimates) if differentiable else (value.detach(), estimates.detach())

    def _forward(self, field: Field, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        values = list[Tensor]()

        def push(v: Tensor) -> Tensor:
            def along(u: Tensor) -> tuple[Tensor, Tensor]:
                value, product = jvp(field, (x,), (u,))[:2]
                return value, product

            value, product = vmap(along)(v)
            values.append(value[0])
            return product

        estimates = self.estimates(self._chunked(push, x), directions).T
        return values[0], estimates

    def _chunked(self, products: Products, x: Tensor) -> Products:
        def all_of(directions: Tensor) -> Tensor:
            chunks = torch.split(directions, self.chunk)
            return torch.cat([products(v.expand(len(v), *x.shape)) for v in chunks])

        return all_of

    def _check(self, probes: int = 1) -> None:
        if self.mode not in MODES or self.chunk < 1 or probes < 1:
            raise ValueError(f"expected mode 'reverse' or 'forward', a chunk and probes of 1 or more, got {self}")


@dataclass(frozen=True)
class Exact(Divergence):
    """sum_i e_i . J e_i, for any shape. The cost is one product for each dimension of a sample."""

    mode: str = "reverse"
    chunk: int = 32
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check()

    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        dims = x[0].numel()
        return torch.eye(dims, dtype=x.dtype, device=x.device).reshape(dims, 1, *x.shape[1:])

    def estimates(self, products: Products, directions: Tensor) -> Tensor:
        chunks = torch.split(directions, self.chunk)
        return torch.stack([_dots(v, products(v)).sum(0, keepdim=True) for v in chunks]).sum(0)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """v . J v for random v with E[v v^T] = 1: unbiased  (Hutchinson 1990; Grathwohl et al. 2019, Eq. 7).

    Args:
        probes: the number of v; two or more give each sample a standard error.
        distribution: of v: "rademacher", "gaussian" or "orthogonal". Orthogonal probes have length sqrt(D). They pay
            where their number is not small against D; the standard error, which assumes independence, is then
            conservative.
        fresh: draw new probes at every evaluation, instead of keeping them for the trajectory. The default is to do so
            on a grid, where the errors of many evaluations average out. Adaptive steps need constant probes.
    """

    probes: int = 1
    distribution: str = "rademacher"
    mode: str = "reverse"
    chunk: int = 1
    fresh: bool | None = None
    shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check(self.probes)
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"expected {', '.join(DISTRIBUTIONS)}, got {self.distribution!r}")

    @property
    def count(self) -> int:
        return self.probes

    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        normals = torch.stack([like(noise(x), x, "the noise") for _ in range(self.probes)])
        if self.distribution == "orthogonal":
            if self.probes > x[0].numel():
                raise ValueError(f"expected at most {x[0].numel()} orthogonal probes, got {self.probes}")
            return orthonormal(normals) * math.sqrt(x[0].numel())
        return normals if self.distribution == "gaussian" else signs(normals)

    def estimates(self, products: Products, directions: Tensor) -> Tensor:
        return _dots(directions, products(directions))


@dataclass(frozen=True)
class HutchPlusPlus(Divergence):
    """The trace on the range of J S exactly, the remainder by probes  (Meyer et al. 2021, "Hutch++", Algorithm 1).

        tr(Q^T J Q) + mean_i g_i^T (1 - Q Q^T) J (1 - Q Q^T) g_i,    Q an orthonormal basis of J S

    Unbiased, and better than `Hutchinson` where few directions carry most of the trace, or D is small.

    Args:
        rank: number of columns of S; each costs two products.
        probes: number of g; each costs one product. Two or more give each sample a standard error.
        fresh: see `Hutchinson`.
    """

    rank: int = 4
    probes: int = 4
    mode: str = "reverse"
    chunk: int = 8
    fresh: bool | None = None
    shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check(min(self.probes, self.rank))

    @property
    def count(self) -> int:
        return self.probes

    def directions(self, x: Tensor, noise: Noise) -> Tensor:
        return signs(torch.stack([like(noise(x), x, "the noise") for _ in range(self.rank + self.probes)]))

    def estimates(self, products: Products, directions: Tensor) -> Tensor:
        start, probes = directions[: min(self.rank, directions[0, 0].numel())], directions[self.rank :]
        basis = orthonormal(products(start).detach())
        inside = torch.einsum("rb...,pb...->rpb", basis, probes)
        rest = probes - torch.einsum("rpb,rb...->pb...", inside, basis)
        return _dots(basis, products(basis)).sum(0) + _dots(rest, products(rest))


def signs(normals: Tensor) -> Tensor:
    """The signs of the numbers, -1 or 1, in their dtype."""
    return torch.where(normals < 0, -1.0, 1.0).to(normals)


def orthonormal(vectors: Tensor) -> Tensor:
    """Vectors (P, B, *D) made orthonormal within each sample; uniform in direction if they are normal."""
    columns = vectors.flatten(2).permute(1, 2, 0)
    q, r = torch.linalg.qr(columns)
    q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q)[:, None]
    basis: Tensor = q.permute(2, 0, 1).reshape(vectors.shape)
    return basis


def _dots(v: Tensor, w: Tensor) -> Tensor:
    """The inner products of each sample, (P, B)."""
    dots: Tensor = (v * w).flatten(2).sum(2)
    return dots
