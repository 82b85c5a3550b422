"""NCSN++'s image pyramids, beside the U-Net's own way down and up (Song et al. 2021, Appendix H.1).

Each joins a level's features h to what the pyramid carries, and gives both: `(h, pyramid) -> (h, pyramid)`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scorefield.models.layers.blocks import Norm, zeroed
from scorefield.models.layers.norm import GroupNorm
from scorefield.models.layers.resampling import NEAREST, Downsample, Fir, Upsample

Pair = tuple[Tensor, Tensor | None]


class SkipIn(nn.Module):
    """The image, made smaller, is shown to each level through a 1x1 convolution: added, or beside its features."""

    def __init__(self, image: int, channels: int, beside: bool, fir: Sequence[float]) -> None:
        super().__init__()
        self.beside = beside
        self.smaller = Fir(fir)
        self.conv = nn.Conv2d(image, channels, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> Pair:
        pyramid = self.smaller(pyramid)
        shown = self.conv(pyramid)
        return torch.cat([shown, h], 1) if self.beside else shown + h, pyramid


class ResidualIn(nn.Module):
    """The pyramid goes down by convolutions, and each level's features are a residual on it."""

    def __init__(self, carried: int, channels: int, fir: Sequence[float], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.smaller = Downsample(carried, channels, filtering(fir))

    def forward(self, h: Tensor, pyramid: Tensor) -> Pair:
        pyramid = (self.smaller(pyramid) + h) * self.gain
        return pyramid, pyramid


class SkipOut(nn.Module):
    """Each level adds its own image to the one so far, made larger."""

    def __init__(self, image: int, channels: int, norm: Norm, fir: Sequence[float]) -> None:
        super().__init__()
        self.larger = Fir(fir, up=True)
        self.head = Head(norm(channels), zeroed(nn.Conv2d(channels, image, 3, padding=1)))

    def forward(self, h: Tensor, pyramid: Tensor | None) -> Pair:
        image = self.head(h)
        return h, image if pyramid is None else self.larger(pyramid) + image


class ResidualOut(nn.Module):
    """The pyramid goes up by convolutions, and each level's features are a residual on it; the deepest begins it."""

    def __init__(self, carried: int | None, channels: int, norm: Norm, fir: Sequence[float], gain: float) -> None:
        super().__init__()
        self.gain = gain
        begins = carried is None
        self.first = Head(norm(channels), nn.Conv2d(channels, channels, 3, padding=1)) if begins else None
        self.larger = None if carried is None else Upsample(carried, channels, filtering(fir))

    def forward(self, h: Tensor, pyramid: Tensor | None) -> Pair:
        if self.first is not None:
            return h, self.first(h)
        assert self.larger is not None
        pyramid = (self.larger(pyramid) + h) * self.gain
        return pyramid, pyramid


class Head(nn.Sequential):
    """conv(silu(norm(h))), from features to an image."""

    def __init__(self, norm: GroupNorm, conv: nn.Conv2d) -> None:
        super().__init__(norm, nn.SiLU(), conv)

    def forward(self, h: Tensor) -> Tensor:
        norm, _, conv = self.children()
        assert isinstance(norm, GroupNorm)
        output: Tensor = conv(norm.activated(h))
        return output


def filtering(fir: Sequence[float]) -> Sequence[float] | None:
    """The filter that goes with a convolution: none for the nearest neighbour, whose work the convolution does."""
    return None if tuple(fir) == NEAREST else fir
