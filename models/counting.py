"""How often a denoiser is called."""

from typing import Any

from torch import Tensor

from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise


class CountCalls:
    """A denoiser that counts its evaluations, of batches (`calls`) and of samples (`samples`).

    A solver that takes samples one by one makes more calls of fewer samples. samples / batch is the mean number of
    evaluations for a sample.
    """

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser = denoiser
        self.calls = 0
        self.samples = 0

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[x0 | x], shape (B, *D)."""
        self._count(x)
        return self.denoiser(x, alpha, sigma, **cond)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[eps | x], shape (B, *D)."""
        self._count(x)
        return predict_noise(self.denoiser, x, alpha, sigma, **cond)

    def _count(self, x: Tensor) -> None:
        self.calls += 1
        self.samples += len(x)
