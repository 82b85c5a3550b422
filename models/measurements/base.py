"""What a measurement is, and what follows for a linear one."""

import abc
import functools
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from scorefield.models.measurements.conjugate_gradients import conjugate_gradients
from scorefield.models.measurements.svd import SVD, is_small, of_matrix
from scorefield.sde_lib.broadcast import Scale, expand, precise


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
        """Y as images of the data's size and range, (B, C, H, W), for pictures, or None where it is none."""
        if len(self.shape) != 3 or len(self.measured_shape) != 3 or self.measured_shape[0] not in (1, 3):
            return None
        if y.shape[2:] != self.shape[1:]:
            y = functional.interpolate(y, self.shape[1:], mode="nearest")
        return y.expand(-1, self.shape[0], -1, -1) if y.shape[1] == 1 and self.shape[0] == 3 else y

    def probes(self, count: int) -> Tensor:
        """Samples of zeros, (count, *D), on the device and in the dtype of the measurement's own tensors.

        They are of float64 where it has none.
        """
        own = next((t for t in itertools.chain(self.parameters(), self.buffers()) if t.is_floating_point()), None)
        like = torch.zeros((), dtype=torch.float64) if own is None else own
        return torch.zeros(count, *self.shape, dtype=like.dtype, device=like.device)

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
        """The singular value decomposition, where it is known in closed form or small, or else None."""
        return self._dense_svd

    def solve(self, r: Tensor, noise: Scale, signal: Scale) -> Tensor:
        """(noise I + signal A A^T)^-1 r, (B, *M): exact with singular values, or else by conjugate gradients.

        With singular values it is computed in float64, so that a small noise keeps the digits of float32. Without
        noise it is the pseudo-inverse.

        Args:
            r: (B, *M).
            noise: a variance of the measurements, () or (B,), of 0 or more.
            signal: a variance of x0, () or (B,).
        """
        svd = self.svd()
        if svd is None:
            c, d = expand(noise, r), expand(signal, r)
            return conjugate_gradients(lambda p: c * p + d * self(self.adjoint(p)), r, steps=50, tolerance=1e-6)
        wide = precise(r)
        spectral = svd.u_t(wide)
        c, d = expand(precise(noise), spectral), expand(precise(signal), spectral)
        s = svd.s.to(wide)
        hidden = (c == 0) & (svd.values(r).to(wide) == 0)  # what r's own rounding would fill
        answer = svd.u(_quotient(spectral, torch.where(hidden, 0.0, c + d * s.square())))
        if len(s) < self.size:  # where A A^T is zero
            answer = answer + _quotient(wide - svd.u(spectral), expand(precise(noise), wide))
        return answer.to(r)

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
        return svd.v(svd.inverse(y) * svd.u_t(y))

    def matrix(self) -> Tensor:
        """A as a matrix (m, d) in float64, column by column: for small problems."""
        size = math.prod(self.shape)
        identity = self.probes(size).reshape(size, size).fill_diagonal_(1.0)
        columns: Tensor = self(identity.reshape(-1, *self.shape)).detach().flatten(1)
        return columns.T.double().cpu()

    @functools.cached_property
    def _dense_svd(self) -> SVD | None:
        if not is_small(self.shape, self.measured_shape):
            return None
        return of_matrix(self.matrix(), self.shape, self.measured_shape)


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """A / b, and 0 where b is zero."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
