"""The parameterisation for integer data: the posterior of each pixel alone, and a network that corrects it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.models.precondition import Precondition
from scorefield.sde_lib.broadcast import Scale, expand
from scorefield.sde_lib.quantise import cell_to_value

CHUNK = {"cpu": 2**19}  # numbers in one softmax over the levels: they fit a CPU's cache
LEAST = 1e-12  # variance of eps, of which the root has a derivative
FAINTEST = -60.0  # logit of the least likely level: processors are slow with numbers below float32's normal ones


class PixelPosterior(NamedTuple):
    """The posterior of each pixel's level, given that pixel alone; of the shape of x each.

    Args:
        mean: E[x0 | x].
        eps: E[eps | x] = (x - alpha mean) / sigma.
        spread: the standard deviation of eps given x, alpha / sigma times that of x0.
    """

    mean: Tensor
    eps: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Levels:
    """Mean and standard deviation of a pixel's level, given the noisy pixel alone, in the place of EDM's coefficients.

        D = m(x) + s(x) F(x / r, m(x), s(x) alpha / sigma; c_noise),   r^2 = alpha^2 + sigma^2

        m, s = mean and standard deviation of x_k under  p(k | x) = softmax_k(log p_k - (x - alpha x_k)^2 / (2 sigma^2))

    EDM's c_skip x and c_out are m and s for pixels of a Gaussian distribution (Karras et al. 2022, Appendix B.6). Here
    the distribution is the histogram of the data's levels. So an untrained network already knows that there are levels,
    and how often each of them occurs. Where the noise is finer than the levels s is next to 0, and D is the level.
    VDM's Fourier features (Kingma et al. 2021, Appendix C) teach a network the same.

    The network takes three images side by side (`inputs`).

    Args:
        probabilities: p_k of each level, (levels,).
        cells: lower end of the first level's cell, and upper end of the last, in the model's values.

    Raises:
        ValueError: unless the probabilities are positive numbers, two or more.
    """

    probabilities: tuple[float, ...]
    cells: tuple[float, float] = (-1.0, 1.0)

    inputs = 3  # images that the network is given

    def __post_init__(self) -> None:
        if len(self.probabilities) < 2 or not all(0 < p < math.inf for p in self.probabilities):
            raise ValueError(
                f"expected a positive probability for each of two levels or more, got {len(self.probabilities)}: add "
                "one to the count of every level"
            )

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale) -> PixelPosterior:
        """The posterior of each pixel, of the shape of x."""
        alpha, sigma = expand(alpha, x), expand(sigma, x)
        levels = torch.arange(len(self.probabilities), device=x.device, dtype=torch.float64)
        low, high = self.cells
        centres = cell_to_value(levels + 0.5, len(levels), low=low, high=high).to(x.dtype)
        log_p = torch.tensor(self.probabilities, dtype=torch.float64).log().to(x)
        scale = (sigma / alpha).expand_as(x).reshape(-1, 1)
        seen = (x / alpha).reshape(-1, 1)
        rows = max(CHUNK.get(x.device.type, 2**26) // len(levels), 1)
        parts = [
            _moments(*each, centres, log_p)
            for each in zip(torch.split(seen, rows), torch.split(scale, rows), strict=True)
        ]
        return PixelPosterior(*(torch.cat(each).reshape(x.shape) for each in zip(*parts, strict=True)))


def _moments(seen: Tensor, scale: Tensor, centres: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows (N, 1), the posterior's mean of x0, and mean and deviation of eps, without a loss of digits."""
    away = (centres - seen) / scale
    logits = log_p - away.square() / 2
    p = (logits - logits.amax(1, keepdim=True).detach()).clamp(min=FAINTEST).softmax(1)
    mean = (p * away).sum(1, keepdim=True)
    variance = (p * (away - mean).square()).sum(1)
    return p @ centres, -mean[:, 0], variance.clamp(min=LEAST).sqrt()


Parameterisation = Precondition | Levels  # what a `Denoiser` takes
