"""How well an autoencoder gives images back, and how well its codes are used."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

# Wang et al. 2004, Section III-C: a Gaussian window, and constants relative to the range of the values.
WINDOW, DEVIATION, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, (B,):  10 log10(span^2 / mean (x - y)^2).

    Equal images have an infinite one.

    Args:
        x: images, (B, *D).
        y: images of the same shape.
        span: largest value less the smallest, 2 for images in -1 .. 1.
    """
    return 10 * (span**2 / (x - y).double().square().flatten(1).mean(1)).log10()


def ssim(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """Structural similarity of each image, (B,), 1 for equal ones (Wang et al. 2004, Eq. 13).

        (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2)),   c1 = (0.01 span)^2, c2 = (0.03 span)^2

    with means, variances and covariance in a Gaussian window of 11 x 11 pixels and deviation 1.5, averaged over all
    windows within the image and over channels. Images under 11 pixels a side have a window as large as they are.

    Args:
        x: images, (B, C, H, W).
        y: images of the same shape.
        span: largest value less the smallest, 2 for images in -1 .. 1.
    """
    height, width = (_window(min(WINDOW, size), x.device) for size in x.shape[2:])
    kernel = (height[:, None] * width)[None, None]
    images = len(x)
    x, y = (each.double().flatten(0, 1)[:, None] for each in (x, y))
    mx, my, xx, yy, xy = conv2d(torch.cat((x, y, x * x, y * y, x * y)), kernel).chunk(5)
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    covariance, variances = xy - mx * my, xx - mx.square() + yy - my.square()
    similar = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx.square() + my.square() + c1) * (variances + c2))
    return similar.reshape(images, -1).mean(1)


class Usage(NamedTuple):
    """How many points of a quantiser a set of images uses.

    Args:
        used: points with at least one code.
        size: points.
        perplexity: exp(H) of the frequencies p of the points, H = -sum p log p: `size` where all are equally frequent.
    """

    used: int
    size: int
    perplexity: float

    @property
    def share(self) -> float:
        """The share of the points in use."""
        return self.used / self.size


class UsageCounter:
    """Counts the points that codes are on, batch by batch: use of a codebook is a number of a set, and not of a batch.

    Args:
        size: points of the quantiser.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._dense = size <= 2**24
        self._counts = torch.zeros(size if self._dense else 0, dtype=torch.int64)
        self._sparse: dict[int, int] = {}

    def add(self, index: Tensor) -> None:
        """Count the points of codes, an index of any shape."""
        if self._dense:
            self._counts += torch.bincount(index.flatten(), minlength=self.size).cpu()
            return
        for point, count in zip(*(each.tolist() for each in torch.unique(index, return_counts=True)), strict=True):
            self._sparse[point] = self._sparse.get(point, 0) + count

    @property
    def counts(self) -> Tensor:
        """How many codes are on each point that is in use."""
        counts = self._counts if self._dense else torch.tensor(list(self._sparse.values()), dtype=torch.int64)
        return counts[counts > 0]

    def usage(self) -> Usage:
        """What was counted so far.

        Raises:
            ValueError: if nothing was.
        """
        counts = self.counts.double()
        if not len(counts):
            raise ValueError("expected codes to count, got none: add an index first")
        p = counts / counts.sum()
        return Usage(len(p), self.size, math.exp(float(-(p * p.log()).sum())))


class DimensionCounter:
    """KL(q(z | x) || N(0, 1)) in nats of each number of a code, averaged over images.

    A number whose average is nearly 0 says nothing about the image.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._images = 0

    def add(self, kl: Tensor) -> None:
        """Add the divergences of a batch, (B, c, h, w)."""
        total = kl.double().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._images += len(kl)

    def kl(self) -> Tensor:
        """The averages, (c, h, w), float64.

        Raises:
            ValueError: if nothing was counted.
        """
        if self._sum is None:
            raise ValueError("expected divergences to average, got none: add those of a batch first")
        return self._sum / self._images


def _window(size: int, device: torch.device) -> Tensor:
    place = torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2
    weights = (-place.square() / (2 * DEVIATION**2)).exp()
    return weights / weights.sum()
