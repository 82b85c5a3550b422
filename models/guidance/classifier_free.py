"""Classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.sde_lib.broadcast import Scale, as_tensor, expand
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise, predict_x0


class ClassifierFree(nn.Module):
    """Classifier-free guidance:  D = (1 - scale) D(x) + scale D(x, label).

    Ho and Salimans 2022, Eq. 6, with scale = 1 + w. The denoiser must have been trained with some of its conditioning
    left out. At a scale of 1 the answer is D(x, label) to the bit, and at 0 it is D(x).

    Args:
        denoiser: called once with the conditioning and once without.
        scale: 0 is unconditional, 1 conditional, more is guided. `guidance (B,)` beside the conditioning is a scale
            for each sample, in its place.
        without: the keywords that are left out for D(x); all others go to both. For a `ConditionedNetwork` that is its
            `conditioning`.
        interval: the noise levels (low, high] in sigma / alpha that are guided; the scale is 1 at all others
            (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Raises:
        ValueError: for a denoiser that was always given its conditioning, or levels that are no interval.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        scale: float,
        without: Sequence[str] = ("label",),
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if getattr(denoiser, "label_required", False) or getattr(getattr(denoiser, "net", None), "required", False):
            raise ValueError(
                f"expected a denoiser that was trained with some {_kind(without)}s left out, got one that was always "
                f"given a {_kind(without)}: use it without guidance"
            )
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"expected an interval of noise levels, 0 <= low < high, got {interval}: correct it")
        self.denoiser, self.scale = denoiser, scale
        self.without, self.interval = tuple(without), interval

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """The guided E[x0 | x], shape (B, *D); a `label` is a class for each sample, (B,).

        Raises:
            ValueError: without conditioning.
        """
        return self._guided(predict_x0, x, alpha, sigma, cond)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """The guided E[eps | x], linear in the two denoisers' as D is, shape (B, *D)."""
        return self._guided(predict_noise, x, alpha, sigma, cond)

    def _guided(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        own = cond.pop("guidance", None)
        if not any(cond.get(key) is not None for key in self.without):
            raise ValueError(_missing(self.without))
        scale = self._at(alpha, sigma, self.scale if own is None else own)
        if _everywhere(scale, 1.0):
            return predict(self.denoiser, x, alpha, sigma, **cond)
        rest = {key: value for key, value in cond.items() if key not in self.without}
        if _everywhere(scale, 0.0):
            return predict(self.denoiser, x, alpha, sigma, **rest)
        unconditional = predict(self.denoiser, x, alpha, sigma, **rest)
        conditional = predict(self.denoiser, x, alpha, sigma, **cond)
        return _between(unconditional, conditional, scale)

    def _at(self, alpha: Scale, sigma: Scale, scale: Scale) -> Scale:
        """The scale at a noise level, (), (B,) or (B, *D): 1 outside of the interval."""
        if self.interval is None:
            return scale
        alpha, sigma = as_tensor(alpha), as_tensor(sigma)
        inside = (sigma > self.interval[0] * alpha) & (sigma <= self.interval[1] * alpha)
        scale = as_tensor(scale).to(inside.device)
        if scale.ndim == 1 and inside.ndim > 1:
            scale = scale.reshape(-1, *(1,) * (inside.ndim - 1))
        return torch.where(inside, scale, 1.0)


def _everywhere(scale: Scale, value: float) -> bool:
    """Whether a scale has a value for all samples, if that is known without waiting for another device."""
    scale = as_tensor(scale)
    return scale.device.type == "cpu" and bool((scale == value).all())


def _between(unconditional: Tensor, conditional: Tensor, scale: Scale) -> Tensor:
    """The line unconditional + scale (conditional - unconditional), and at a scale of 1 `conditional` to the bit."""
    step = conditional - unconditional
    if not isinstance(scale, Tensor):
        return unconditional + scale * step
    scale = expand(scale, step)
    return torch.where(scale == 1, conditional, unconditional + scale * step)


def _kind(without: Sequence[str]) -> str:
    return "label" if tuple(without) == ("label",) else "condition"


def _missing(without: Sequence[str]) -> str:
    if tuple(without) == ("label",):
        return 'expected a label for guidance, got none: pass cond={"label": label}, a class for each sample'
    return f"expected one of {', '.join(without)} for guidance, got none: pass it in cond, a row for each sample"
