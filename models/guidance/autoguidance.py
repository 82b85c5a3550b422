"""Autoguidance: a denoiser guided by a worse version of itself."""

from typing import Any

from torch import Tensor

from scorefield.models.guidance.two_denoisers import TwoDenoisers
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike


class Auto(TwoDenoisers):
    """Autoguidance:  D = D_good + (scale - 1) (D_good - D_bad).

    Karras et al. 2024, arXiv 2406.02507, Eq. 3. The bad denoiser makes the errors of the good one, but larger: it is
    smaller, or trained for a shorter time. So both go away from them. It may be an earlier snapshot of the same run.
    Both are given all conditioning, and none is needed.

    Args:
        good: E[x0 | x].
        bad: of the same path and the same values.
        scale: 1 is the good denoiser to the bit, 0 the bad one; Karras et al. take 1.5 to 3.
        interval: see `TwoDenoisers`.
        rescale: see `TwoDenoisers`.
        parallel: see `TwoDenoisers`.
        norm: see `TwoDenoisers`.

    Raises:
        ValueError: for numbers that `TwoDenoisers` refuses.
    """

    def __init__(
        self,
        good: DenoiserLike,
        bad: DenoiserLike,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        parallel: float = 1.0,
        norm: float | None = None,
    ) -> None:
        super().__init__(scale, interval, rescale, parallel, norm)
        self.good, self.bad = good, bad

    def weak(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        """The bad answer, (B, *D)."""
        return predict(self.bad, x, alpha, sigma, **cond)

    def strong(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        """The good answer, (B, *D)."""
        return predict(self.good, x, alpha, sigma, **cond)
