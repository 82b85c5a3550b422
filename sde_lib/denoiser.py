"""What a denoiser is, and how losses, bounds, divergences and solvers call one."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from scorefield.sde_lib.arguments import check_denoiser, shown
from scorefield.sde_lib.broadcast import Scale, expand, like

# A denoiser is called as `D(x, alpha, sigma, **cond)` and returns E[x0 | x = alpha x0 + sigma eps], shape (B, *D).
# Scales are () or (B,). A function, a module or any other callable will do.
DenoiserLike = Callable[..., Tensor]

# The conditioning of a batch, as keywords of the denoiser. Tensors have a row for each sample, (B, ...). Everything
# else is the same for all samples.
Cond = Mapping[str, Any]


def predict_x0(denoiser: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
    """E[x0 | x] in the dtype of x, shape (B, *D).

    Raises:
        ValueError: if the denoiser returns another shape.
    """
    return _like(denoiser(x, alpha, sigma, **cond), x)


def predict_noise(denoiser: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
    """E[eps | x] = (x - alpha D(x)) / sigma in the dtype of x, shape (B, *D).

    A denoiser with a method `noise` is called by it: it can answer without dividing a small difference by a small
    sigma.

    Raises:
        ValueError: if the denoiser returns another shape.
    """
    direct = _noise_method(denoiser)
    if direct is not None:
        return _like(direct(x, alpha, sigma, **cond), x)
    return (x - expand(alpha, x) * predict_x0(denoiser, x, alpha, sigma, **cond)) / expand(sigma, x)


def take_rows(cond: Cond, rows: slice | Tensor, batch: int) -> dict[str, Any]:
    """The conditioning of some rows of a batch.

    Raises:
        ValueError: if a tensor does not have a row for each sample of the batch.
    """
    if not isinstance(cond, Mapping):
        raise ValueError(
            f"expected cond as a dict, as {{'label': label}}, got {shown(cond)}: name the denoiser's keyword"
        )
    for key, value in cond.items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != batch):
            raise ValueError(
                f"expected cond[{key!r}] with a row for each of the {batch} samples, got shape {tuple(value.shape)}: "
                "pass one row for each sample, and what all samples share as a number or in a tuple"
            )
    return {key: value[rows] if isinstance(value, Tensor) else value for key, value in cond.items()}


class BoundDenoiser:
    """A denoiser with the conditioning of its batch, for the steps of a solver: called as `(x, alpha, sigma)`.

    Args:
        denoiser: E[x0 | x, cond].
        cond: its keywords.
        batch: the number of samples, B.

    Raises:
        ValueError: if a tensor in cond does not have a row for each sample, or the denoiser cannot be called so.
    """

    def __init__(self, denoiser: DenoiserLike, cond: Cond | None, batch: int) -> None:
        self.denoiser, self.batch = denoiser, batch
        self.cond = take_rows({} if cond is None else cond, slice(None), batch)
        check_denoiser(denoiser, self.cond)
        self._last: list[Callable[[], Tensor]] | None = None

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[x0 | x, cond], shape (B, *D)."""
        x0 = predict_x0(self.denoiser, x, alpha, sigma, **self.cond)
        self._keep(lambda: x0)
        return x0

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[eps | x, cond], shape (B, *D)."""
        if _noise_method(self.denoiser) is None:
            return predict_noise(self.__call__, x, alpha, sigma)
        eps = predict_noise(self.denoiser, x, alpha, sigma, **self.cond)
        self._keep(lambda: (x - expand(sigma, x) * eps) / expand(alpha, x))
        return eps

    def take(self, rows: slice | Tensor) -> "BoundDenoiser":
        """The same denoiser with the conditioning of these rows."""
        count = len(range(self.batch)[rows]) if isinstance(rows, slice) else len(rows)
        part = copy.copy(self)
        part.cond, part.batch = take_rows(self.cond, rows, self.batch), count
        return part

    def keep_last(self) -> None:
        """Keep the last answer from now on, for `last_x0`. It is not kept otherwise: it may hold a graph."""
        self._last = []

    def last_x0(self) -> Tensor | None:
        """The last answer as E[x0 | x], for the rows of the last call; None before the first."""
        return self._last[0]() if self._last else None

    def _keep(self, x0: Callable[[], Tensor]) -> None:
        if self._last is not None:
            self._last[:] = [x0]


def _noise_method(denoiser: DenoiserLike) -> DenoiserLike | None:
    method = getattr(denoiser, "noise", None)
    return method if callable(method) else None


def _like(answer: Tensor, x: Tensor) -> Tensor:
    return like(answer, x, "the denoiser").to(x.dtype)
