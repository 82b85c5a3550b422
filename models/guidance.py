"""Denoisers that wrap a denoiser: solvers, encoding and likelihood take them unchanged."""

from typing import Any

from torch import Tensor, nn

from scorefield.sde_lib.broadcast import DenoiserLike, of_rows, predict_noise


class Conditioned(nn.Module):
    """A denoiser with its conditioning filled in:  D(x, alpha, sigma) = D(x, alpha, sigma, **cond).

    Tensors in it have a row for each sample.
    """

    def __init__(self, denoiser: DenoiserLike, **cond: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.cond = cond

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x, cond], shape (B, *D)."""
        return self.denoiser(x, alpha, sigma, **self.cond)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[eps | x, cond], shape (B, *D)."""
        return predict_noise(self.denoiser, x, alpha, sigma, **self.cond)

    def rows(self, rows: slice | Tensor) -> "Conditioned":
        """The same for some rows of the batch."""
        part = {key: value[rows] if isinstance(value, Tensor) else value for key, value in self.cond.items()}
        return Conditioned(of_rows(self.denoiser, rows), **part)


class ClassifierFree(nn.Module):
    """Classifier-free guidance:  D = (1 - scale) D(x) + scale D(x, label).

    Ho and Salimans 2022, Eq. 6, with scale = 1 + w.

    The denoiser must have been trained with its labels sometimes left out.

    Args:
        denoiser: called once with `label` and once without.
        label: a class for each sample, (B,).
        scale: 0 is unconditional, 1 conditional, more is guided.
    """

    def __init__(self, denoiser: DenoiserLike, label: Tensor, scale: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.label = label
        self.scale = scale

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The guided E[x0 | x], shape (B, *D)."""
        without = self.denoiser(x, alpha, sigma)
        return without + self.scale * (self.denoiser(x, alpha, sigma, label=self.label) - without)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The guided E[eps | x], linear in the two denoisers' as D is, shape (B, *D)."""
        without = predict_noise(self.denoiser, x, alpha, sigma)
        return without + self.scale * (predict_noise(self.denoiser, x, alpha, sigma, label=self.label) - without)

    def rows(self, rows: slice | Tensor) -> "ClassifierFree":
        """The same for some rows of the batch."""
        return ClassifierFree(of_rows(self.denoiser, rows), self.label[rows], self.scale)
