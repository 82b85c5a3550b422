"""How much a denoiser leaves open: the mean variance of x0 given x, by noise level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import Scale, precise
from scorefield.sde_lib.denoiser import Cond, DenoiserLike, predict_x0
from scorefield.sde_lib.sde import Noise


@dataclass(frozen=True)
class PosteriorVariance:
    """r^2(lambda) = E |x0 - D(x)|^2 / d  at some log-SNRs, and between them by a line in its logarithm.

    For an exact denoiser this is the mean of Var[x0 | x] over data, noise and dimensions. Beyond the highest level it
    falls as rho^2 = sigma^2 / alpha^2, and below the lowest it is constant.

    Args:
        log_snr: lambda, rising.
        variance: r^2 at each, above zero.

    Raises:
        ValueError: for levels that do not rise, or variances that are not above zero.
    """

    log_snr: tuple[float, ...]
    variance: tuple[float, ...]

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in zip(self.log_snr, self.log_snr[1:], strict=False))
        if not (len(self.log_snr) == len(self.variance) >= 2 and rises and min(self.variance) > 0):
            raise ValueError(
                f"expected two rising log-SNRs or more, with a variance above 0 for each, got {len(self.log_snr)} and "
                f"{len(self.variance)}: measure them by PosteriorVariance.measure"
            )

    @classmethod
    def measure(
        cls, denoiser: DenoiserLike, sde: SDE, x0: Tensor, *, noise: Noise, cond: Cond | None = None, levels: int = 24
    ) -> "PosteriorVariance":
        """The denoiser's mean squared error on data x0 (N, *D), at levels with equal steps in log-SNR.

        Args:
            denoiser: E[x0 | x].
            sde: its path.
            x0: some data: with 64 images, the error of the result is small beside that of the approximation.
            noise: source of standard normals.
            cond: keywords of the denoiser, with a row for each sample.
            levels: how many; each is one evaluation of all x0.
        """
        low, high = (float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min))
        log_snr = torch.linspace(low, high, levels, dtype=torch.float64)
        variance = []
        with torch.no_grad():
            for level in log_snr:
                t = sde.time(level)
                x = sde.perturb(x0, t, noise(x0))
                error = x0 - predict_x0(denoiser, x, *sde.scales(t), **(cond or {}))
                variance.append(max(float(error.square().mean()), torch.finfo(x0.dtype).tiny))
        return cls(tuple(log_snr.tolist()), tuple(variance))

    def times(self, factor: float) -> "PosteriorVariance":
        """All variances multiplied by a number."""
        return replace(self, variance=tuple(factor * each for each in self.variance))

    def __call__(self, alpha: Scale, sigma: Scale) -> Tensor:
        """r^2 at a noise level, shaped as the scales, in float64."""
        alpha, sigma = precise(alpha), precise(sigma)
        at = 2 * (alpha.log() - sigma.log())
        within = _interpolate(at, self.log_snr, [math.log(each) for each in self.variance])
        return (within - (at - self.log_snr[-1]).clamp(min=0)).exp()


def _interpolate(at: Tensor, x: Sequence[float], y: Sequence[float]) -> Tensor:
    """The line through points (x, y) with rising x, constant beyond its ends."""
    xs, ys = (torch.tensor(each, dtype=at.dtype, device=at.device) for each in (x, y))
    at = at.clamp(xs[0], xs[-1])
    left = (torch.searchsorted(xs, at.contiguous(), right=True) - 1).clamp(0, len(xs) - 2)
    share = (at - xs[left]) / (xs[left + 1] - xs[left])
    return torch.lerp(ys[left], ys[left + 1], share)
