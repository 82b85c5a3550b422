"""What a solver needs to know of a path at a time: as tensors for a batch, and as plain numbers for coefficients."""

from typing import NamedTuple

from torch import Tensor

from scorefield.sde_lib import SDE


class Scales(NamedTuple):
    """The path at a time; each () or (B,), or (T,) for the points of a grid.

    On a path with a noise level for each dimension, all but t are (B, *D).
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    drift: Tensor  # f, of dx = f x dt + g dw
    diffusion: Tensor  # g

    @classmethod
    def at(cls, sde: SDE, t: Tensor) -> "Scales":
        """The scales of a path at times t."""
        alpha, sigma = sde.scales(t)
        return cls(t, alpha, sigma, sde.log_snr(t), sde.drift(t), sde.diffusion(t))


class ScalarScales(NamedTuple):
    """`Scales` at one time as plain numbers."""

    t: float
    alpha: float
    sigma: float
    log_snr: float
    drift: float
    diffusion: float
