"""What a solver or a likelihood asks of an inverse problem  y = A(x0) + noise_std n."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike


class SingularValues(Protocol):
    """A = U diag(s) V^T, by its four maps of a batch."""

    @property
    def s(self) -> Tensor:
        """The singular values, (r,)."""

    @property
    def v_t(self) -> Callable[[Tensor], Tensor]:
        """V^T, (B, *D) -> (B, r)."""

    @property
    def v(self) -> Callable[[Tensor], Tensor]:
        """V, (B, r) -> (B, *D)."""

    @property
    def u_t(self) -> Callable[[Tensor], Tensor]:
        """U^T, (B, *M) -> (B, r)."""

    @property
    def u(self) -> Callable[[Tensor], Tensor]:
        """U, (B, r) -> (B, *M)."""


class MeasurementLike(Protocol):
    """A(x0), of samples (B, *D), (B, *M). What follows `linear` is of linear ones alone."""

    shape: tuple[int, ...]
    linear: bool

    @property
    def measured_shape(self) -> tuple[int, ...]:
        """Of one measurement, *M."""

    def __call__(self, x0: Tensor) -> Tensor:
        """A(x0), (B, *M)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *D)."""

    def solve(self, r: Tensor, noise: Scale, signal: Scale) -> Tensor:
        """(noise I + signal A A^T)^-1 r, (B, *M)."""

    def svd(self) -> SingularValues | None:
        """The singular values, where they are known."""


class InverseProblemLike(Protocol):
    """A prior's denoiser with a measurement, called with `y` beside the prior's own conditioning."""

    prior: DenoiserLike
    measurement: MeasurementLike
    noise_std: float

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x], or E[x0 | x, y] of a method that guides, (B, *D)."""

    def log_likelihood(self, x0: Tensor, y: Tensor) -> Tensor:
        """Log N(y; A(x0), noise_std^2) in nats, (B,)."""


def as_inverse_problem(denoiser: object, who: str) -> InverseProblemLike:
    """The denoiser, once it is known to be one with a prior and a measurement.

    Raises:
        ValueError: for others; `who` is the solver.
    """
    if not all(hasattr(denoiser, name) for name in ("prior", "measurement", "noise_std", "log_likelihood")):
        raise ValueError(
            f"expected an inverse problem for {who}, got {shown(denoiser)}: wrap the denoiser, as "
            "InverseProblem(denoiser, measurement, noise_std)"
        )
    return cast(InverseProblemLike, denoiser)


def known_values(measurement: MeasurementLike, like: Tensor) -> Tensor | None:
    """Which values a measurement gathers, as booleans (*D); None where it is no mask.

    A mask is known by  A^T A x = mask x,  with a mask of zeros and ones.

    Args:
        measurement: A.
        like: a tensor of the dtype and the device of its measurements.
    """
    if not measurement.linear:
        return None
    mask = measurement.adjoint(like.new_ones(1, *measurement.measured_shape))
    probe = torch.arange(1.0, mask.numel() + 1, dtype=mask.dtype, device=mask.device).reshape(mask.shape)
    gathers = torch.equal(measurement.adjoint(measurement(probe)), mask * probe)
    return mask[0] == 1 if gathers and bool(((mask == 0) | (mask == 1)).all()) else None


def nearest_consistent(measurement: MeasurementLike, x0: Tensor, y: Tensor) -> Tensor:
    """The nearest x with  A x = y  of a linear measurement,  x0 + A^T (A A^T)^-1 (y - A x0),  (B, *D).

    The second round takes away what the first has rounded, so that known pixels are those of y to the bit.
    """
    for _ in range(2):
        x0 = x0 + measurement.adjoint(measurement.solve(y - measurement(x0), 0.0, 1.0))
    return x0


def check_measured(y: object, measurement: MeasurementLike, batch: int) -> Tensor:
    """Y, once it is a measurement for each of the batch's samples, (B, *M).

    Raises:
        ValueError: for other shapes, and where there is none.
    """
    shape = (batch, *measurement.measured_shape)
    if not isinstance(y, Tensor) or tuple(y.shape) != shape:
        raise ValueError(
            f"expected a measurement y {shape} for {shown(measurement)}, got {'none' if y is None else shown(y)}: "
            "pass one row for each sample, as cond={'y': y}"
        )
    return y
