"""Denoisers that wrap a denoiser: solvers, encoding and likelihood take them unchanged."""

from typing import Any

from torch import Tensor, nn

from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise, predict_x0


class ClassifierFree(nn.Module):
    """Classifier-free guidance:  D = (1 - scale) D(x) + scale D(x, label).

    Ho and Salimans 2022, Eq. 6, with scale = 1 + w. The denoiser must have been trained with some labels left out.

    Args:
        denoiser: called once with `label` and once without.
        scale: 0 is unconditional, 1 conditional, more is guided.

    Raises:
        ValueError: for a denoiser that was always given a label.
    """

    def __init__(self, denoiser: DenoiserLike, scale: float) -> None:
        super().__init__()
        if getattr(denoiser, "label_required", False):
            raise ValueError(
                "expected a denoiser that was trained with some labels left out, got one that was always given a "
                "label: use it without guidance"
            )
        self.denoiser = denoiser
        self.scale = scale

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, *, label: Tensor | None = None, **cond: Any) -> Tensor:
        """The guided E[x0 | x], shape (B, *D); `label` is a class for each sample, (B,).

        Raises:
            ValueError: without a label.
        """
        label = _required(label)
        without = predict_x0(self.denoiser, x, alpha, sigma, **cond)
        return without + self.scale * (predict_x0(self.denoiser, x, alpha, sigma, label=label, **cond) - without)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, *, label: Tensor | None = None, **cond: Any) -> Tensor:
        """The guided E[eps | x], linear in the two denoisers' as D is, shape (B, *D)."""
        label = _required(label)
        without = predict_noise(self.denoiser, x, alpha, sigma, **cond)
        return without + self.scale * (predict_noise(self.denoiser, x, alpha, sigma, label=label, **cond) - without)


def _required(label: Tensor | None) -> Tensor:
    if label is None:
        raise ValueError('expected a label for guidance, got none: pass cond={"label": label}, a class for each sample')
    return label
