"""The distribution of an image's pixels around the mean of an autoencoder's decoder, p(x | z)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scorefield.likelihood.decoders import levels_of, log_between
from scorefield.sde_lib.broadcast import like, precise
from scorefield.sde_lib.quantise import cell_to_value

BINS = 16  # of the mean, in each of which a channel has a scale of its own
FEWEST = 200  # values in a bin: with fewer, it takes the scale of its channel
OUTLIERS = 1e-4  # share of levels that are drawn from all alike, so that a surprise costs at most 15 nats of 256 levels
LADDER = 17  # scales from the smallest to the largest, of which the best is then refined
LOG_2 = math.log(2)


def _laplace_cdf(x: Tensor) -> Tensor:
    return torch.where(x < 0, x - LOG_2, torch.log1p(-(-x.abs()).exp() / 2))


def _logistic_density(x: Tensor) -> Tensor:
    return functional.logsigmoid(x) + functional.logsigmoid(-x)


@dataclass(frozen=True)
class _Family:
    """A symmetric distribution around 0 of scale 1: the logarithms of its density and of its distribution function."""

    density: Callable[[Tensor], Tensor]
    cdf: Callable[[Tensor], Tensor]


FAMILIES = {
    "laplace": _Family(lambda x: -x.abs() - LOG_2, _laplace_cdf),
    "logistic": _Family(_logistic_density, functional.logsigmoid),
    "normal": _Family(lambda x: -x.square() / 2 - math.log(2 * math.pi) / 2, torch.special.log_ndtr),
}


@dataclass(frozen=True)
class PixelDistribution:
    """Independent pixels around a mean: p(x | z) = prod_i f((x_i - mean_i) / s_i) / s_i.

    The scale s_i is that of the pixel's channel and of the bin in which its mean is. So it is a function of z, and
    p(x | z) is a distribution. Of integers, it is f's probability of the cell; the first and the last cell are
    unbounded. A share of 1e-4 of the levels is drawn from all levels alike.

    Args:
        family: f, one of "laplace", "logistic" and "normal".
        scale: for each channel and bin, (C, M), in the model's values. The bins divide low .. high equally.
        levels: of integers; None for a density of continuous values.
        low: lower end of the first cell.
        high: upper end of the last cell.
    """

    family: str
    scale: Tensor
    levels: int | None
    low: float = -1.0
    high: float = 1.0

    def log_prob(self, x0: Tensor, mean: Tensor) -> Tensor:
        """Log p(x0 | mean) in nats, (B,), float64; x0 and mean (B, C, *D). Integers are on the centres of their cells.

        Raises:
            ValueError: if the shapes differ, or integers are not on their centres.
        """
        cells = _cells(like(mean, x0, "the autoencoder's decoder"), self.scale.shape[1], self.low, self.high)
        scale = precise(self.scale).to(mean.device).flatten()[cells]
        away = _distances(x0, mean, self.levels, self.low, self.high)
        return _log_prob(FAMILIES[self.family], away, scale, self.levels).flatten(1).sum(1)

    def described(self) -> dict[str, Any]:
        """As JSON keeps it; `read` makes it again."""
        return {
            "family": self.family, "scale": self.scale.tolist(), "levels": self.levels, "low": self.low,
            "high": self.high,
        }  # fmt: skip

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> "PixelDistribution":
        """The distribution that `described` wrote."""
        return cls(**{**described, "scale": torch.tensor(described["scale"], dtype=torch.float64)})


def fit_pixels(
    x0: Tensor, mean: Tensor, levels: int | None, *, low: float = -1.0, high: float = 1.0, bins: int = BINS,
    families: tuple[str, ...] = tuple(FAMILIES),
) -> PixelDistribution:  # fmt: skip
    """The family and the scales of greatest likelihood for images x0 and their means, (N, C, *D).

    Each scale is found by a search in one dimension: the best of 17 scales, refined. A bin with fewer than 200 values
    takes the scale of its channel.

    Args:
        x0: images in the model's values; integers on the centres of their cells.
        mean: of the decoder, for codes that are drawn from q(z | x0).
        levels: of integers; None for continuous values.
        low: lower end of the first cell.
        high: upper end of the last cell.
        bins: M, of the mean.
        families: to choose from.
    """
    channels, away, fitted = x0.shape[1], _distances(x0, mean, levels, low, high), []
    cells, count = _cells(mean, bins, low, high).flatten(), channels * bins
    enough = (torch.bincount(cells, minlength=count) >= FEWEST).reshape(channels, bins)
    for name in families:
        family = FAMILIES[name]
        scale = _scales(family, away, cells // bins, channels, levels, high - low)[:, None].expand(channels, bins)
        if bins > 1:
            own = _scales(family, away, cells, count, levels, high - low).reshape(channels, bins)
            scale = torch.where(enough, own, scale)
        total = _log_prob(family, away, scale.flatten()[cells].reshape(x0.shape), levels).sum()
        fitted.append((float(total), PixelDistribution(name, scale.contiguous().cpu(), levels, low, high)))
    return max(fitted, key=lambda each: each[0])[1]


def _scales(
    family: _Family, away: Sequence[Tensor], cells: Tensor, count: int, levels: int | None, width: float
) -> Tensor:
    """For each cell the scale of greatest likelihood, (count,), to 0.4%."""
    smallest = width / (10 * levels if levels is not None else 1e5)
    step = math.log(width / smallest) / (LADDER - 1)
    best = torch.full((count,), math.log(smallest) + step * (LADDER - 1) / 2, dtype=torch.float64, device=cells.device)
    offsets = [step * (i - (LADDER - 1) / 2) for i in range(LADDER)]
    while step > 4e-3:
        sums = []
        for offset in offsets:
            scale = (best + offset).exp()[cells].reshape(away[0].shape)
            sums.append(torch.bincount(cells, _log_prob(family, away, scale, levels).flatten(), minlength=count))
        best = best + torch.tensor(offsets).to(best)[torch.stack(sums).argmax(0)]
        step /= 2
        offsets = [-step, 0.0, step]
    return best.exp()


def _distances(x0: Tensor, mean: Tensor, levels: int | None, low: float, high: float) -> tuple[Tensor, ...]:
    """From the mean to the pixel, or to the two ends of its cell; each shaped as x0, in float64."""
    mean = precise(mean)
    if levels is None:
        return (precise(x0) - mean,)
    k = levels_of(x0, levels, low, high)
    below, above = (cell_to_value(k.to(mean) + side, levels, low=low, high=high) - mean for side in (0, 1))
    return torch.where(k == 0, -math.inf, below), torch.where(k == levels - 1, math.inf, above)


def _log_prob(family: _Family, away: Sequence[Tensor], scale: Tensor, levels: int | None) -> Tensor:
    """Of each pixel in nats, shaped as its `_distances` and its scale."""
    if levels is None:
        return family.density(away[0] / scale) - scale.log()
    log_p = log_between(away[0] / scale, away[1] / scale, family.cdf)
    return torch.logaddexp(log_p + math.log1p(-OUTLIERS), torch.full_like(log_p, math.log(OUTLIERS / levels)))


def _cells(mean: Tensor, bins: int, low: float, high: float) -> Tensor:
    """The number of each pixel's channel and bin in the flattened table of scales, int64, shaped as the mean."""
    place = ((precise(mean) - low) * (bins / (high - low))).floor().clamp(0, bins - 1).long()
    channel = torch.arange(mean.shape[1], device=mean.device).reshape(-1, *(1,) * (mean.ndim - 2))
    return channel * bins + place
