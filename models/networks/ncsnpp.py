"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456, Appendix H)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.embeddings import NoiseEmbedding
from scorefield.models.layers.initial import RESCALED, as_images, channels_last, zeroed
from scorefield.models.layers.norm import Norm, norms
from scorefield.models.layers.resampling import NEAREST, Downsample, Fir, Upsample

PYRAMIDS = ("none", "skip", "residual")
Pair = tuple[Tensor, Tensor | None]


@save_hyperparameters
class NCSNpp(nn.Module):
    """F(x, c_noise, label): DDPM's U-Net, improved; with other switches DDPM++.

    NCSN++ as published for VE is the default. DDPM++ has `frequencies="timesteps"`, `fir=(1, 1)`, `pyramid_in="none"`;
    the deep variants have 8 blocks. Any number of channels; height and width divisible by 2^(levels - 1).

    Args:
        channels: of the images, in and out.
        width: channels of the first level.
        multipliers: of the width, one for each level; the size halves between levels.
        blocks: residual blocks a level (one more on the way up).
        attention: the levels, counted from 0 at full size, that have attention.
        biggan: residual blocks resample themselves (Brock et al. 2019); otherwise DDPM's, with layers between them.
        resample_conv: those layers are convolutions.
        fir: the filter of all resampling, (1, 1) for the nearest neighbour and means.
        pyramid_in: the image pyramid on the way down: "none", "skip" (each level is shown the image), or "residual".
        combine: how "skip" joins it: "sum" or "cat".
        pyramid_out: the one on the way up: "none", "skip" (each level adds to the output), or "residual".
        rescale: sums of two branches by sqrt(1/2).
        dropout: inside the residual blocks.
        frequencies: of the noise embedding: "gaussian" of log sigma, "timesteps" of 0 .. 999, or "smooth" of c_noise.
        conditional: whether the network takes the noise level.
        num_classes: with it, the network takes `label (B,)`; no label means "unknown".
        label_first: the class joins the sines and cosines of the noise level (Karras et al. 2022).
        unit_range: x is 2x - 1 first, for images in 0 .. 1.

    Raises:
        ValueError: for a word that is none of these.
    """

    def __init__(
        self,
        channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (1,),
        biggan: bool = True,
        resample_conv: bool = True,
        fir: Sequence[float] = (1, 3, 3, 1),
        pyramid_in: str = "residual",
        combine: str = "sum",
        pyramid_out: str = "none",
        rescale: bool = True,
        dropout: float = 0.0,
        frequencies: str = "gaussian",
        conditional: bool = True,
        num_classes: int | None = None,
        label_first: bool = False,
        unit_range: bool = False,
    ) -> None:
        super().__init__()
        _among("pyramid_in", pyramid_in, PYRAMIDS)
        _among("pyramid_out", pyramid_out, PYRAMIDS)
        _among("combine", combine, ("sum", "cat"))
        self.channels, self.unit_range = channels, unit_range
        widths = [width * m for m in multipliers]
        deepest = len(widths) - 1
        self.stride = 2**deepest
        norm, gain, embedding = norms(), RESCALED if rescale else 1.0, 4 * width if conditional else None
        features = 2 * width if frequencies == "gaussian" else width
        self.unknown_label = num_classes if conditional else None
        self.embed = NoiseEmbedding(features, 4 * width, num_classes, frequencies, label_first) if conditional else None

        residual = partial(ResidualBlock, embedding=embedding, dropout=dropout, norm=norm, rescale=rescale)
        attend = partial(Attention, norm=norm, rescale=rescale)

        def resampler(channels: int, up: bool) -> nn.Module:
            if biggan:
                return residual(channels, channels, resample=up, fir=fir)
            if not resample_conv:
                return Fir(fir, up)
            return Upsample(channels, fir=filtering(fir)) if up else Downsample(channels, fir=filtering(fir))

        def block(channels_in: int, level: int, attends: bool) -> UNetBlock:
            attending = attend(widths[level]) if attends and level in attention else None
            return UNetBlock(residual(channels_in, widths[level]), attending)

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        skips, current, carried = [width], width, channels
        self.down = nn.ModuleList()
        for level in range(len(widths)):
            stage: Stage = Down()
            for _ in range(blocks):
                stage.blocks.append(block(current, level, attends=True))
                skips.append(current := widths[level])
            if level < deepest:
                stage.resample = resampler(current, up=False)
                if pyramid_in == "skip":
                    stage.pyramid = SkipIn(channels, current, combine == "cat", fir)
                    current *= 2 if combine == "cat" else 1
                if pyramid_in == "residual":
                    stage.pyramid = ResidualIn(carried, current, fir, gain)
                    carried = current
                skips.append(current)
            self.down.append(stage)

        self.middle_in = residual(current, current)
        self.middle_attention = attend(current)
        self.middle_out = residual(current, current)

        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            stage = Up()
            for i in range(blocks + 1):
                stage.blocks.append(block(current + skips.pop(), level, attends=i == blocks))
                current = widths[level]
            if pyramid_out == "skip":
                stage.pyramid = SkipOut(channels, current, norm, fir)
            if pyramid_out == "residual":
                stage.pyramid = ResidualOut(None if level == deepest else carried, current, norm, fir, gain)
                carried = current
            if level > 0:
                stage.resample = resampler(current, up=True)
            self.up.append(stage)

        last = head(norm(current), zeroed(nn.Conv2d(current, channels, 3, padding=1)))
        self.head = None if pyramid_out == "skip" else last
        channels_last(self)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W).

        Raises:
            ValueError: if these are no such images, or the height or width does not divide by 2^(levels - 1).
        """
        x = as_images(x, self.channels, self.stride)
        emb = None if self.embed is None else self.embed(c_noise, label)
        pyramid: Tensor | None = 2 * x - 1 if self.unit_range else x

        h = self.stem(pyramid)
        skips = [h]
        for stage in self.down:
            h, pyramid = stage(h, emb, skips, pyramid)

        h = self.middle_out(self.middle_attention(self.middle_in(h, emb)), emb)

        pyramid = None
        for stage in self.up:
            h, pyramid = stage(h, emb, skips, pyramid)

        output: Tensor | None = pyramid if self.head is None else self.head(h)
        assert output is not None
        return output


class Stage(nn.Module):
    """A level: its blocks, what joins it to the pyramid, and what leads to the next level."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.pyramid: nn.Module | None = None
        self.resample: nn.Module | None = None

    def joined(self, h: Tensor, pyramid: Tensor | None) -> Pair:
        """The features and the pyramid, joined if there is a pyramid."""
        pair: Pair = (h, pyramid) if self.pyramid is None else self.pyramid(h, pyramid)
        return pair

    def resampled(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """The features at the next level's size, if there is one."""
        if self.resample is None:
            return h
        learned = isinstance(self.resample, ResidualBlock)
        output: Tensor = self.resample(h, emb) if learned else self.resample(h)
        return output


class Down(Stage):
    """A level on the way down: its features after each block and between levels are kept for the way up."""

    def forward(self, h: Tensor, emb: Tensor | None, skips: list[Tensor], pyramid: Tensor | None) -> Pair:
        for block in self.blocks:
            h = block(h, emb)
            skips.append(h)
        if self.resample is not None:
            h, pyramid = self.joined(self.resampled(h, emb), pyramid)
            skips.append(h)
        return h, pyramid


class Up(Stage):
    """A level on the way up: each block also takes what the way down kept."""

    def forward(self, h: Tensor, emb: Tensor | None, skips: list[Tensor], pyramid: Tensor | None) -> Pair:
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb)
        h, pyramid = self.joined(h, pyramid)
        return self.resampled(h, emb), pyramid


# The image pyramids join a level's features h to what the pyramid carries, and return both (Appendix H.1).


class SkipIn(nn.Module):
    """The image, made smaller, joins each level through a 1x1 convolution: added, or beside its features."""

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
        self.head = head(norm(channels), zeroed(nn.Conv2d(channels, image, 3, padding=1)))

    def forward(self, h: Tensor, pyramid: Tensor | None) -> Pair:
        image = self.head(h)
        return h, image if pyramid is None else self.larger(pyramid) + image


class ResidualOut(nn.Module):
    """The pyramid goes up by convolutions, and each level's features are a residual on it; the deepest begins it."""

    def __init__(self, carried: int | None, channels: int, norm: Norm, fir: Sequence[float], gain: float) -> None:
        super().__init__()
        self.gain = gain
        begins = carried is None
        self.first = head(norm(channels), nn.Conv2d(channels, channels, 3, padding=1)) if begins else None
        self.larger = None if carried is None else Upsample(carried, channels, filtering(fir))

    def forward(self, h: Tensor, pyramid: Tensor | None) -> Pair:
        if self.first is not None:
            return h, self.first(h)
        assert self.larger is not None
        pyramid = (self.larger(pyramid) + h) * self.gain
        return pyramid, pyramid


def head(norm: nn.Module, conv: nn.Conv2d) -> nn.Sequential:
    """conv(silu(norm(h))), from features to an image."""
    return nn.Sequential(norm, nn.SiLU(), conv)


def filtering(fir: Sequence[float]) -> Sequence[float] | None:
    """The filter that goes with a convolution: none for the nearest neighbour, whose work the convolution does."""
    return None if tuple(fir) == NEAREST else fir


def _among(name: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise ValueError(f"expected {name} to be one of {', '.join(words)}, got {word!r}")
