"""How often a denoiser is asked."""

from typing import Any

from torch import Tensor

from scorefield.sde_lib.broadcast import DenoiserLike, of_rows, predict_noise


class CountCalls:
    """A denoiser that counts its evaluations, of batches (`calls`) and of samples (`samples`).

    A solver that takes each sample by itself calls more often, and with fewer samples each time: samples / batch is its
    mean number of evaluations for one.
    """

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser = denoiser
        self._counts = [0, 0]

    @property
    def calls(self) -> int:
        """How often it was called."""
        return self._counts[0]

    @property
    def samples(self) -> int:
        """For how many samples, all calls together."""
        return self._counts[1]

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x], shape (B, *D)."""
        self._count(x)
        return self.denoiser(x, alpha, sigma, **cond)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """E[eps | x], shape (B, *D)."""
        self._count(x)
        return predict_noise(self.denoiser, x, alpha, sigma, **cond)

    def rows(self, rows: slice | Tensor) -> "CountCalls":
        """The same for some rows of the batch, counted together with this one."""
        part = CountCalls(of_rows(self.denoiser, rows))
        part._counts = self._counts
        return part

    def _count(self, x: Tensor) -> None:
        self._counts[0] += 1
        self._counts[1] += len(x)
