"""The last term of a bound: the probability of the data given the first point of the path, log p(x0 | x_{t_min})."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import expand, precise
from scorefield.sde_lib.denoiser import DenoiserLike, predict_x0
from scorefield.sde_lib.quantise import cell_to_value, cell_width, quantise

OFF_CENTRE = 0.05  # of a cell: float32 keeps the centres of 16-bit levels to 1e-2; dequantised data is further away
CHUNK = 2**22  # most numbers in one softmax over the levels
TAIL = 9.0  # noises, beyond which a level has a share below e^-40


class Decoder(abc.ABC):
    """A distribution of x0 given x_{t_min} = alpha x0 + sigma eps, independent in each dimension.

    `evaluations` is the number of calls of the denoiser in one `log_prob`.
    """

    evaluations: ClassVar[int] = 1

    def log_prob(
        self, denoiser: DenoiserLike, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, std: Tensor | None = None
    ) -> Tensor:
        """Log p(x0 | x) in nats, shape (B,), float64: the sum of `log_prob_of_each`, which has these arguments."""
        return self.log_prob_of_each(denoiser, x0, x, alpha, sigma, std).flatten(1).sum(1)

    @abc.abstractmethod
    def log_prob_of_each(
        self, denoiser: DenoiserLike, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, std: Tensor | None = None
    ) -> Tensor:
        """Log p of each dimension of x0 given x, in nats, (B, *D), float64.

        Args:
            denoiser: E[x0 | x].
            x0: the data, (B, *D).
            x: the path's point at t_min, (B, *D).
            alpha: the data's scale at t_min, () or (B,).
            sigma: the noise's scale at t_min, () or (B,).
            std: of the model's last step, if it belongs to a chain (`vlb`); some decoders ignore it.
        """


@dataclass(frozen=True)
class GaussianDecoder(Decoder):
    """N(x0; D(x), sigma^2 / alpha^2), for continuous data: a log-density.

    Song, Durkan, Murray and Ermon 2021, Appendix B: the correction for a path that starts at t_min.
    """

    def log_prob_of_each(
        self, denoiser: DenoiserLike, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, std: Tensor | None = None
    ) -> Tensor:
        ratio = expand(precise(sigma / alpha), precise(x0))
        z = precise(x0 - predict_x0(denoiser, x, alpha, sigma)) / ratio
        return -(z.square() / 2 + ratio.log() + math.log(2 * math.pi) / 2)


@dataclass(frozen=True)
class LevelDecoder(Decoder):
    """p(k | x) = softmax_k(-(x - alpha x_k)^2 / (2 sigma^2)) in each dimension, x_k the centres of the levels' cells.

    A probability, for x0 on the centres x_k = low + (high - low) (k + 1/2) / levels. It does not call the network.
    The decoder of Kingma et al. 2021, Section 3.2.

    Args:
        levels: the number of values of a dimension.
        low: lower end of the first cell.
        high: upper end of the last cell.
    """

    evaluations: ClassVar[int] = 0

    levels: int
    low: float = -1.0
    high: float = 1.0

    def log_prob_of_each(
        self, denoiser: DenoiserLike, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, std: Tensor | None = None
    ) -> Tensor:
        k = levels_of(x0, self.levels, self.low, self.high)
        x = precise(x)
        scale = expand(precise(sigma / alpha), x)
        seen = x / expand(precise(alpha), x)  # x in units of the data, where its noise is sigma / alpha
        reach = math.ceil(TAIL * float(scale.detach().max()) / cell_width(self.levels, low=self.low, high=self.high))
        near = torch.arange(-min(reach, self.levels), min(reach, self.levels) + 1, device=x.device)
        rows = (seen, scale.expand_as(x), k)
        size = max(CHUNK // len(near), 1)
        parts = zip(*(torch.split(each.reshape(-1, 1), size) for each in rows), strict=True)
        log_prob = torch.cat([self._log_prob(*part, near=near) for part in parts])
        return log_prob.reshape(x.shape)

    def _log_prob(self, seen: Tensor, scale: Tensor, k: Tensor, *, near: Tensor) -> Tensor:
        """Of rows (N, 1), by those levels whose distance from the nearest is `near`; the others' share is e^-40."""
        nearest = quantise(seen.detach(), self.levels, low=self.low, high=self.high)
        others = nearest + near
        log_p = -((seen - self._centre(others)) / scale).square() / 2
        log_p = log_p.masked_fill((others < 0) | (others >= self.levels), -math.inf)
        of_k = -((seen - self._centre(k)) / scale).square() / 2
        return of_k[:, 0] - log_p.logsumexp(1)

    def _centre(self, k: Tensor) -> Tensor:
        return cell_to_value(precise(k) + 0.5, self.levels, low=self.low, high=self.high)


@dataclass(frozen=True)
class DiscretisedDecoder(Decoder):
    """N(D(x), std^2) integrated over the cell of x0 in each dimension; the first and the last cell are unbounded.

    A probability, for x0 on the cells' centres (Ho et al. 2020, Eq. 13). Their images k / 127.5 - 1 are 256 levels from
    low = -1 - 1 / 255 to high = 1 + 1 / 255. Their tanh approximation of the integral and their floor of 1e-12 are
    not used.

    Args:
        levels: the number of values of a dimension.
        low: lower end of the first cell.
        high: upper end of the last cell.
        std: in units of the data; by default that of the chain's last step if there is one, else sigma / alpha.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0
    std: float | None = None

    def log_prob_of_each(
        self, denoiser: DenoiserLike, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, std: Tensor | None = None
    ) -> Tensor:
        k = levels_of(x0, self.levels, self.low, self.high)
        mean = precise(predict_x0(denoiser, x, alpha, sigma))
        if self.std is not None:
            scale: Tensor | float = self.std
        else:
            scale = expand(precise(sigma / alpha if std is None else std), mean)
        ends = (cell_to_value(k.to(mean) + side, self.levels, low=self.low, high=self.high) for side in (0, 1))
        below, above = ((end - mean) / scale for end in ends)
        below = torch.where(k == 0, -math.inf, below)
        above = torch.where(k == self.levels - 1, math.inf, above)
        return log_between(below, above)


def log_between(a: Tensor, b: Tensor, log_cdf: Callable[[Tensor], Tensor] = torch.special.log_ndtr) -> Tensor:
    """Log (F(b) - F(a)) for a < b and a symmetric F, by default the normal one; of any shape.

    It is computed in the lower tail, without cancellation: F(-a) - F(-b) is the same.
    """
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    log_b = log_cdf(b)
    between: Tensor = log_b + torch.log(-torch.expm1(log_cdf(a) - log_b))
    return between


def levels_of(x0: Tensor, levels: int, low: float, high: float) -> Tensor:
    """The integers whose cells' centres x0 is on, int64, shaped as x0.

    Raises:
        ValueError: if x0 is not on the centres.
    """
    x0 = precise(x0)
    k = quantise(x0, levels, low=low, high=high)
    centres = cell_to_value(k.to(x0) + 0.5, levels, low=low, high=high)
    off = float((x0 - centres).abs().max()) / cell_width(levels, low=low, high=high)
    if off > OFF_CENTRE:
        raise ValueError(
            f"expected x0 on the centres of {levels} cells from {low:g} to {high:g}, got one {off:.2g} of a cell away: "
            "a probability of levels needs integers k as low + (high - low) (k + 0.5) / levels, without dequantising"
        )
    return k
