"""Guidance by the difference of two denoisers, and its two corrections."""

import abc
import math
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.sde_lib.broadcast import Scale, as_tensor, expand
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise, predict_x0
from scorefield.sde_lib.twist import Twist


class TwoDenoisers(nn.Module, abc.ABC):
    """D = D1 + (scale - 1) P(D1 - D0),  from a weak denoiser D0 through a strong one D1.

    P is the identity by default. With `parallel` or `norm` it is adaptive projected guidance (Sadat et al. 2024, arXiv
    2410.02416, Algorithm 1): the difference is shortened to `norm`, and its part along D1 is multiplied by `parallel`.
    Their momentum is left out: it makes D a function of earlier steps, which solvers with several evaluations a step,
    encoding and likelihood cannot take. `rescale` then brings the standard deviation of D over a sample's values
    towards that of D1 (Lin et al. 2023, arXiv 2305.08891, Eq. 15 and 16):

        D <- (phi std(D1) / std(D) + 1 - phi) D

    A subclass defines `weak`, `strong` and `both`. `guidance (B,)` beside the conditioning is a scale for each sample.
    At a scale of 1 the answer is D1 to the bit. At 0 it is D0, without corrections.

    Args:
        scale: 0 is weak, 1 strong, more is guided.
        interval: the noise levels (low, high] in sigma / alpha that are guided; the scale is 1 at all others, and D0 is
            not evaluated there (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        rescale: phi, a share within [0, 1].
        parallel: eta, the factor of the difference's part along D1; 1 keeps it, and APG takes 0.
        norm: r, the largest norm of a sample's difference, in the model's values; None for no limit.

    Raises:
        ValueError: for levels that are no interval, or corrections out of range.
    """

    def __init__(
        self,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        parallel: float = 1.0,
        norm: float | None = None,
    ) -> None:
        super().__init__()
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"expected an interval of noise levels, 0 <= low < high, got {interval}: correct it")
        if not 0 <= rescale <= 1:
            raise ValueError(f"expected rescale to be a share within [0, 1], got {rescale}: 0.7 is usual")
        if not math.isfinite(parallel) or (norm is not None and not norm > 0):
            raise ValueError(
                f"expected a finite parallel and a norm above 0, got {parallel} and {norm}: APG takes 0 and 2.5"
            )
        self.scale, self.interval = scale, interval
        self.rescale, self.parallel, self.norm = rescale, parallel, norm

    @abc.abstractmethod
    def weak(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        """D0, as x0 or as noise, (B, *D)."""

    @abc.abstractmethod
    def strong(self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]) -> Tensor:
        """D1, (B, *D)."""

    def both(
        self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """D0 and D1."""
        at = (predict, x, alpha, sigma, cond)
        return self.weak(*at), self.strong(*at)

    def check(self, cond: dict[str, Any]) -> None:
        """Raises ValueError for conditioning that does not tell the denoisers apart."""

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """The guided E[x0 | x], (B, *D).

        Raises:
            ValueError: without the conditioning that guides.
        """
        scale = self._scale(cond)
        return self._guided(predict_x0, x, alpha, sigma, cond, self._at(alpha, sigma, scale))

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """The guided E[eps | x], (B, *D), without dividing a difference by sigma where D is a line."""
        scale = self._scale(cond)
        return self._guided(predict_noise, x, alpha, sigma, cond, self._at(alpha, sigma, scale))

    def twist(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Twist:
        """The proposal and target of `Twisted` for the tilted law  p0(x)^(1 - scale) p1(x)^scale.

        Corrections and the interval change the proposal alone, and not the law.
        """
        scale = self._scale(cond)
        weak, strong = self.both(predict_x0, x, alpha, sigma, cond)
        guided = self._joined(weak, strong, self._at(alpha, sigma, scale), x, alpha, sigma, False)
        powers = (1 - scale, scale)
        return Twist(guided, ((powers[0], weak), (powers[1], strong)), x.new_zeros(len(x)))

    def finish(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> tuple[Tensor, Tensor]:
        """The guided E[x0 | x], and no further weight."""
        return self(x, alpha, sigma, **cond), x.new_zeros(len(x))

    @property
    def _corrected(self) -> bool:
        return self.rescale > 0 or self.parallel != 1 or self.norm is not None

    def _scale(self, cond: dict[str, Any]) -> Scale:
        """The scale, or those of samples, which are taken out of the conditioning."""
        own = cond.pop("guidance", None)
        self.check(cond)
        return self.scale if own is None else own

    def _guided(
        self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, cond: dict[str, Any], scale: Scale
    ) -> Tensor:
        wait = self.interval is not None  # for another device: an evaluation costs more
        if _everywhere(scale, 1.0, wait):
            return self.strong(predict, x, alpha, sigma, cond)
        if _everywhere(scale, 0.0, wait):
            return self.weak(predict, x, alpha, sigma, cond)
        weak, strong = self.both(predict, x, alpha, sigma, cond)
        return self._joined(weak, strong, scale, x, alpha, sigma, predict is predict_noise)

    def _joined(
        self, weak: Tensor, strong: Tensor, scale: Scale, x: Tensor, alpha: Scale, sigma: Scale, noise: bool
    ) -> Tensor:
        """The guided answer of two, all as x0 or all as noise; at a scale of 1 `strong` to the bit, at 0 `weak`."""
        line = _between(weak, strong, scale)
        if not self._corrected:
            return line
        step, x1, unit = strong - weak, strong, torch.tensor(1.0)
        if noise:  # the corrections are of x0, of which a unit is -alpha / sigma of the noise
            unit = -as_tensor(alpha) / as_tensor(sigma)
            step, x1 = step / expand(unit, x), (x - expand(sigma, x) * strong) / expand(alpha, x)
        factor = expand(scale, x) if isinstance(scale, Tensor) else torch.tensor(scale)
        shift = (factor - 1) * projected(step, x1, self.parallel, self.norm)
        if self.rescale:
            shift = rescaled(x1 + shift, x1, self.rescale) - x1
        return torch.where((factor == 1) | (factor == 0), line, strong + expand(unit, x) * shift)

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


def projected(step: Tensor, along: Tensor, parallel: float, norm: float | None) -> Tensor:
    """A step (B, *D), shortened to a norm, with its part along another vector multiplied (Sadat et al. 2024, Alg. 1).

    Args:
        step: of each sample.
        along: of each sample, (B, *D).
        parallel: the factor of the part along it.
        norm: the largest norm of a sample's step, None for no limit.
    """
    if norm is not None:
        length = _over_values(torch.linalg.vector_norm(step.flatten(1), dim=1), step)
        step = step * (norm / length).clamp(max=1)  # a step of no length stays: inf is 1
    if parallel == 1:
        return step
    square = _over_values(along.square().flatten(1).sum(1), step).clamp(min=torch.finfo(step.dtype).tiny)
    part = _over_values((step * along).flatten(1).sum(1), step) / square * along
    return step + (parallel - 1) * part


def rescaled(guided: Tensor, strong: Tensor, share: float) -> Tensor:
    """(share std(strong) / std(guided) + 1 - share) guided, by each sample's deviation of its values, (B, *D)."""
    wanted, has = (each.flatten(1).std(1, correction=0) for each in (strong, guided))
    ratio = torch.where(has > 0, wanted / has, 1.0)
    return guided * _over_values(share * ratio + 1 - share, guided)


def _over_values(each: Tensor, x: Tensor) -> Tensor:
    return each.reshape(-1, *(1,) * (x.ndim - 1))


def _everywhere(scale: Scale, value: float, wait: bool) -> bool:
    """Whether a scale has a value for all samples, if that is known without waiting for another device, or `wait`."""
    scale = as_tensor(scale)
    return (wait or scale.device.type == "cpu") and bool((scale == value).all())


def _between(weak: Tensor, strong: Tensor, scale: Scale) -> Tensor:
    """The line weak + scale (strong - weak), and at a scale of 1 `strong` to the bit."""
    step = strong - weak
    if not isinstance(scale, Tensor):
        return weak + scale * step
    scale = expand(scale, step)
    return torch.where(scale == 1, strong, weak + scale * step)
