"""Classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.conditioners.base import READY
from scorefield.models.counting import CountCalls
from scorefield.models.denoiser import Denoiser
from scorefield.models.guidance.two_denoisers import TwoDenoisers
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike


class ClassifierFree(TwoDenoisers):
    """Classifier-free guidance:  D = (1 - scale) D(x) + scale D(x, label).

    Ho and Salimans 2022, Eq. 6, with scale = 1 + w. The denoiser must have been trained with some of its conditioning
    left out. At a scale of 1 the answer is D(x, label) to the bit, and at 0 it is D(x).

    Both are evaluated in one batch of 2B, where the network has a value for "nothing": its `unknown_label`, and `known`
    of a `ConditionedNetwork`. Other denoisers are called twice.

    Args:
        denoiser: called with the conditioning and without.
        scale: 0 is unconditional, 1 conditional, more is guided. `guidance (B,)` beside the conditioning is a scale
            for each sample, in its place.
        without: the keywords that are left out for D(x); all others go to both. For a `ConditionedNetwork` that is its
            `conditioning`.
        interval: the noise levels (low, high] in sigma / alpha that are guided; the scale is 1 at all others
            (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        rescale: see `TwoDenoisers`.
        parallel: see `TwoDenoisers`.
        norm: see `TwoDenoisers`.

    Raises:
        ValueError: for a denoiser that was always given its conditioning, or numbers that `TwoDenoisers` refuses.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        scale: float,
        without: Sequence[str] = ("label",),
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        parallel: float = 1.0,
        norm: float | None = None,
    ) -> None:
        if getattr(denoiser, "label_required", False) or getattr(getattr(denoiser, "net", None), "required", False):
            raise ValueError(
                f"expected a denoiser that was trained with some {_kind(without)}s left out, got one that was always "
                f"given a {_kind(without)}: use it without guidance"
            )
        super().__init__(scale, interval, rescale, parallel, norm)
        self.denoiser, self.without = denoiser, tuple(without)

    def check(self, cond: dict[str, Any]) -> None:
        """Raises ValueError without conditioning."""
        if not any(cond.get(key) is not None for key in self.without):
            raise ValueError(_missing(self.without))

    def weak(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        """The unconditional answer, (B, *D)."""
        rest = {key: value for key, value in cond.items() if key not in self.without}
        return predict(self.denoiser, x, alpha, sigma, **rest)

    def strong(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        """The conditional answer, (B, *D)."""
        return predict(self.denoiser, x, alpha, sigma, **cond)

    def both(
        self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional answer, by one batch where that is possible."""
        joined = without_and_with(self.denoiser, cond, self.without, len(x))
        if joined is None:
            return super().both(predict, x, alpha, sigma, cond)
        answers = predict(self.denoiser, _twice(x), _twice_scale(alpha), _twice_scale(sigma), **joined)
        weak, strong = answers.chunk(2)
        return weak, strong


def without_and_with(
    denoiser: DenoiserLike, cond: dict[str, Any], without: Sequence[str], batch: int
) -> dict[str, Any] | None:
    """The conditioning of 2B samples: first of all B with "nothing" for some keywords, then of all as it is.

    Returns:
        None where the network has no value for "nothing".
    """
    net: Any = denoiser
    while isinstance(net, CountCalls | Denoiser):
        net = net.denoiser if isinstance(net, CountCalls) else net.net
    left_out = {key for key in without if cond.get(key) is not None}
    joined = {key: _twice(value) if isinstance(value, Tensor) else value for key, value in cond.items()}
    if isinstance(net, ConditionedNetwork):
        own = {key for key in (*net.conditioner.keywords, *READY) if cond.get(key) is not None}
        if own & left_out:
            if not own <= left_out:
                return None
            first = next(cond[key] for key in own)
            known = cond.get("known")
            known = first.new_ones(batch, dtype=torch.bool) if known is None else known
            joined["known"] = torch.cat([torch.zeros_like(known), known])
            left_out -= own
        net = net.net
    if "label" in left_out:
        unknown = getattr(net, "unknown_label", None)
        if unknown is None:
            return None
        joined["label"] = torch.cat([torch.full_like(cond["label"], unknown), cond["label"]])
        left_out -= {"label"}
    return None if left_out else joined


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def _twice_scale(scale: Scale) -> Scale:
    return _twice(scale) if isinstance(scale, Tensor) and scale.ndim else scale


def _kind(without: Sequence[str]) -> str:
    return "label" if tuple(without) == ("label",) else "condition"


def _missing(without: Sequence[str]) -> str:
    if tuple(without) == ("label",):
        return 'expected a label for guidance, got none: pass cond={"label": label}, a class for each sample'
    return f"expected one of {', '.join(without)} for guidance, got none: pass it in cond, a row for each sample"
