"""What a measurement is, and what follows for a linear one."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scorefield.models.measurements.conjugate_gradients import conjugate_gradients
from scorefield.sde_lib.broadcast import Scale, expand


@dataclass(frozen=True)
class SVD:
    """A = U diag(s) V^T by its four maps. U and V have orthonormal columns.

    Spectral values may be complex, as a Fourier transform's are. They are then those of real images.

    Args:
        s: the singular values, (r,), zeros included or left out.
        v_t: V^T, x (B, *D) -> (B, r).
        v: (B, r) -> (B, *D).
        u_t: U^T, y (B, *M) -> (B, r).
        u: (B, r) -> (B, *M).
    """

    s: Tensor
    v_t: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    u_t: Callable[[Tensor], Tensor]
    u: Callable[[Tensor], Tensor]


class Measurement(nn.Module, abc.ABC):
    """A(x0), of an inverse problem  y = A(x0) + noise_std n,  n ~ N(0, I).

    Args:
        shape: of one sample, *D.

    Raises:
        ValueError: when it is given samples of another shape.
    """

    linear = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @property
    @abc.abstractmethod
    def measured_shape(self) -> tuple[int, ...]:
        """Of one measurement, *M."""

    @property
    def size(self) -> int:
        """The number of measured values, m."""
        return math.prod(self.measured_shape)

    @abc.abstractmethod
    def measure(self, x0: Tensor) -> Tensor:
        """A(x0), (B, *M), of samples (B, *D), in their dtype."""

    def forward(self, x0: Tensor) -> Tensor:
        """A(x0), (B, *M), once the samples have the right shape."""
        self._check(x0, self.shape, "samples")
        return self.measure(x0)

    def picture(self, y: Tensor) -> Tensor | None:
        """Y as images of the data's range (B, C, H, W), for pictures, or None where it is none."""
        return y if len(self.measured_shape) == 3 and self.measured_shape[0] in (1, 3) else None

    def _check(self, x: Tensor, shape: tuple[int, ...], what: str) -> None:
        if tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"expected {what} (B, {', '.join(map(str, shape))}) for {type(self).__name__}, got "
                f"{tuple(x.shape)}: make the measurement for the shape of the data"
            )


class Linear(Measurement):
    """A linear measurement, with its exact adjoint, and its singular values where they are known."""

    linear = True

    @abc.abstractmethod
    def transpose(self, y: Tensor) -> Tensor:
        """A^T y, (B, *D), of measurements (B, *M), in their dtype."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *D), once y has the right shape."""
        self._check(y, self.measured_shape, "measurements")
        return self.transpose(y)

    def svd(self) -> SVD | None:
        """The singular value decomposition, where it is known in closed form or small."""
        return None

    def solve(self, r: Tensor, noise: Scale, signal: Scale) -> Tensor:
        """(noise I + signal A A^T)^-1 r, (B, *M): exact with singular values, or else by conjugate gradients.

        Args:
            r: (B, *M).
            noise: a variance of the measurements, () or (B,); 0 is allowed where A A^T is regular.
            signal: a variance of x0, () or (B,).
        """
        c, d = expand(noise, r), expand(signal, r)
        svd = self.svd()
        if svd is None:
            return conjugate_gradients(lambda p: c * p + d * self(self.adjoint(p)), r, steps=50, tolerance=1e-6)
        rows = (-1, 1)
        c, d, s = c.reshape(rows), d.reshape(rows), svd.s.to(r)
        spectral, variance = svd.u_t(r), c + d * s.square()
        known = (variance > 0) & ((c > 0) | (s > 1e-6 * s.max()))
        within = svd.u(torch.where(known, spectral / torch.where(known, variance, 1.0), 0.0))
        outside = r - svd.u(spectral)  # where A A^T is zero
        c = expand(noise, r)
        return within + torch.where(c > 0, outside / c.clamp(min=torch.finfo(r.dtype).tiny), 0.0)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, (B, *D), of measurements (B, *M).

        Raises:
            ValueError: where the singular values are not known.
        """
        svd = self.svd()
        if svd is None:
            raise ValueError(
                f"expected a measurement with known singular values for its pseudo-inverse, got {type(self).__name__}: "
                "use a method that needs none, as mmps or pigdm"
            )
        s = svd.s.to(y)
        small = s <= 1e-6 * s.max()
        return svd.v(torch.where(small, 0.0, 1 / torch.where(small, 1.0, s)) * svd.u_t(y))

    def matrix(self) -> Tensor:
        """A as a matrix (m, d) in float64, column by column: for small problems."""
        identity = torch.eye(math.prod(self.shape), dtype=torch.float64)
        columns: Tensor = self(identity.reshape(-1, *self.shape)).flatten(1)
        return columns.T
