"""How often a denoiser is called."""

from typing import Any

from torch import Tensor

from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise


class CountCalls:
    """A denoiser that counts its evaluations, of batches (`calls`) and of samples (`samples`).

    `vjps` counts the samples of the vector-Jacobian products that were taken through its answers. Each costs about as
    much as an evaluation.

    A solver that takes samples one by one makes more calls of fewer samples. samples / batch is the mean number of
    evaluations for a sample.
    """

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser = denoiser
        self.calls = 0
        self.samples = 0
        self.vjps = 0

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[x0 | x], shape (B, *D)."""
        return self._count(self.denoiser(x, alpha, sigma, **cond))

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[eps | x], shape (B, *D)."""
        return self._count(predict_noise(self.denoiser, x, alpha, sigma, **cond))

    def _count(self, answer: Tensor) -> Tensor:
        samples = len(answer)
        self.calls += 1
        self.samples += samples
        if answer.requires_grad:
            answer.register_hook(lambda _: self._count_vjp(samples))  # type: ignore[no-untyped-call]
        return answer

    def _count_vjp(self, samples: int) -> None:
        self.vjps += samples
