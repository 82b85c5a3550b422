"""Convolutional autoencoders of images (Rombach et al. 2022, arXiv 2112.10752, Section 3.1 and Appendix G)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.initial import as_images, channels_last
from scorefield.models.layers.norm import Norm, norms
from scorefield.models.layers.resampling import Downsample, Upsample
from scorefield.models.moments import Moments, Reconstruction
from scorefield.models.networks.quantisers import FSQ, Quantiser

# Bounds of the logarithm of the codes' variance.
LOG_VAR = (-30.0, 20.0)


class ImageAutoencoder(nn.Module, ABC):
    """What all autoencoders of images do: images (B, C, H, W) in -1 .. 1, codes z (B, c, H / f, W / f).

    Args:
        channels: C, of the images.
        code_channels: c, of the codes.
        factor: f; it divides the height and width of the images.
    """

    def __init__(self, channels: int, code_channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.code_channels, self.factor = channels, code_channels, factor

    @abstractmethod
    def moments(self, images: Tensor) -> Moments:
        """q(z | x) of images.

        Raises:
            ValueError: for images of other channels, or of a size that f does not divide.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The images of codes, (B, C, H, W).

        Raises:
            ValueError: for codes of other channels.
        """

    @abstractmethod
    def reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        """Images through their codes, as training needs them.

        Args:
            images: (B, C, H, W).
            noise: standard normal, of the shape of the codes; a deterministic encoder does not look at it.

        Raises:
            ValueError: as `moments`.
        """

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The kernel of the decoder's last convolution, by which the adversarial loss is weighted."""

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the codes of images, (B, c, h, w).

        Raises:
            ValueError: as `moments`.
        """
        return self.moments(images).mean

    def forward(self, images: Tensor) -> Tensor:
        """The images again, by the means of their codes."""
        return self.decode(self.encode(images))

    def as_images(self, images: Tensor) -> Tensor:
        """The images, once their shape is checked.

        Raises:
            ValueError: for images of other channels, or of a size that f does not divide.
        """
        return as_images(images, self.channels, self.factor, "crop or pad the images, or take a smaller factor")

    def as_codes(self, z: Tensor) -> Tensor:
        """The codes, once their shape is checked.

        Raises:
            ValueError: for anything but (B, c, h, w).
        """
        if z.ndim != 4 or z.shape[1] != self.code_channels:
            raise ValueError(
                f"expected codes (B, {self.code_channels}, h, w), got {tuple(z.shape)}: they are of another "
                "autoencoder, or no batch"
            )
        return z.contiguous(memory_format=torch.channels_last)


class Encoder(nn.Module):
    """Images (B, C, H, W) to features (B, c, H / f, W / f), f = 2^(levels - 1).

    Args:
        channels: C.
        features: c.
        widths: channels of each level; the size halves between levels.
        blocks: residual blocks a level.
        attention: the levels, counted from 0 at full size, that have attention.
        middle_attention: whether there is attention between the last two blocks.
        norm: makes the normalisations.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        middle_attention: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, current = nn.ModuleList(), widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_block(current, width, level in attention, norm))
                current = width
            if level < len(widths) - 1:
                self.down.append(Downsample(current))
        self.middle = nn.ModuleList(_middle(current, middle_attention, norm))
        self.norm = norm(current)
        self.head = nn.Conv2d(current, features, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """The features, (B, c, H / f, W / f)."""
        h = self.stem(images)
        for layer in (*self.down, *self.middle):
            h = layer(h)
        features: Tensor = self.head(silu(self.norm(h)))
        return features


class Decoder(nn.Module):
    """Features (B, c, h, w) to images (B, C, f h, f w), with one block more a level than an `Encoder` of the same.

    Args:
        channels: C.
        features: c.
        widths: as the encoder's, from full size down.
        blocks: as the encoder's.
        attention: as the encoder's.
        middle_attention: as the encoder's.
        norm: makes the normalisations.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        middle_attention: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        current = widths[-1]
        self.stem = nn.Conv2d(features, current, 3, padding=1)
        self.middle = nn.ModuleList(_middle(current, middle_attention, norm))
        self.up = nn.ModuleList()
        for level, width in reversed([*enumerate(widths)]):
            for _ in range(blocks + 1):
                self.up.append(_block(current, width, level in attention, norm))
                current = width
            if level > 0:
                self.up.append(Upsample(current))
        self.norm = norm(current)
        self.head = nn.Conv2d(current, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """The images, (B, C, f h, f w)."""
        h = self.stem(features)
        for layer in (*self.middle, *self.up):
            h = layer(h)
        images: Tensor = self.head(silu(self.norm(h)))
        return images


class Convolutional(ImageAutoencoder):
    """The encoder, the decoder and the 1x1 convolutions around the codes that the two kinds below share.

    Args:
        channels: as theirs.
        code_channels: as theirs.
        outputs: how many channels the encoder gives for one of the codes: 2 with a variance.
        width: as theirs.
        multipliers: as theirs.
        blocks: as theirs.
        attention: as theirs.
        middle_attention: as theirs.
        features: as theirs.
        code_convolutions: as theirs.
        groups: as theirs.
        smallest_group: as theirs.
    """

    def __init__(
        self,
        channels: int,
        code_channels: int,
        outputs: int,
        width: int,
        multipliers: Sequence[float],
        blocks: int,
        attention: Sequence[int],
        middle_attention: bool,
        features: int | None,
        code_convolutions: bool,
        groups: int,
        smallest_group: int,
    ) -> None:
        widths = [round(width * m) for m in multipliers]
        super().__init__(channels, code_channels, 2 ** (len(widths) - 1))
        features = features or code_channels
        if features != code_channels and not code_convolutions:
            raise ValueError(
                f"expected features equal to code_channels, got {features} and {code_channels}: leave features out, or "
                "set code_convolutions"
            )
        norm = norms(groups, smallest_group)
        self.encoder = Encoder(channels, outputs * features, widths, blocks, attention, middle_attention, norm)
        self.decoder = Decoder(channels, features, widths, blocks, attention, middle_attention, norm)
        self.to_codes: nn.Module = nn.Identity()
        self.from_codes: nn.Module = nn.Identity()
        if code_convolutions:
            self.to_codes = nn.Conv2d(outputs * features, outputs * code_channels, 1)
            self.from_codes = nn.Conv2d(code_channels, features, 1)
        channels_last(self)

    def features(self, images: Tensor) -> Tensor:
        """What the encoder gives, (B, outputs * c, h, w)."""
        features: Tensor = self.to_codes(self.encoder(self.as_images(images)))
        return features

    def images(self, z: Tensor) -> Tensor:
        """What the decoder gives for codes, (B, C, H, W)."""
        images: Tensor = self.decoder(self.from_codes(z))
        return images

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.head.weight


@save_hyperparameters
class KLAutoencoder(Convolutional):
    """An autoencoder whose codes are normal, held loosely to the standard normal by a small KL term.

    Any number of channels; height and width divisible by f = 2^(levels - 1), square or not.

    Args:
        channels: of the images.
        code_channels: of the codes.
        width: channels of the first level, at a multiplier of 1.
        multipliers: of the width, one for each level; the size halves between levels.
        blocks: residual blocks a level (one more in the decoder).
        attention: the levels, counted from 0 at full size, that have attention.
        middle_attention: whether the middle has it too.
        features: channels between encoder and 1x1 convolution, by default those of the codes.
        code_convolutions: whether a 1x1 convolution makes the codes, and another reads them.
        groups: of the normalisations.
        smallest_group: channels that a group has at least (1 in Rombach et al.'s own code).
    """

    def __init__(
        self,
        channels: int,
        code_channels: int = 4,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        features: int | None = None,
        code_convolutions: bool = True,
        groups: int = 32,
        smallest_group: int = 4,
    ) -> None:
        super().__init__(
            channels, code_channels, 2, width, multipliers, blocks, attention, middle_attention, features,
            code_convolutions, groups, smallest_group,
        )  # fmt: skip

    def moments(self, images: Tensor) -> Moments:
        mean, log_var = self.features(images).chunk(2, 1)
        return Moments(mean, log_var.clamp(*LOG_VAR))

    def decode(self, z: Tensor) -> Tensor:
        return self.images(self.as_codes(z))

    def reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        moments = self.moments(images)
        kl = moments.kl()
        return Reconstruction(
            self.images(moments.sample(noise)), kl, {"kl_per_dimension": kl.detach() / moments.mean[0].numel()}
        )


@save_hyperparameters
class VQAutoencoder(Convolutional):
    """An autoencoder whose decoder reads quantised codes (van den Oord et al. 2017; Esser et al. 2021).

    The codes are those before quantisation: quantisation is the first layer of the decoder (Rombach et al. 2022,
    Section 3.1).

    Args:
        channels: of the images.
        quantiser: of the codes.
        code_channels: of the codes.
        width: channels of the first level, at a multiplier of 1.
        multipliers: of the width, one for each level; the size halves between levels.
        blocks: residual blocks a level (one more in the decoder).
        attention: the levels, counted from 0 at full size, that have attention.
        middle_attention: whether the middle has it too.
        features: channels between encoder and 1x1 convolution, by default those of the codes.
        code_convolutions: whether a 1x1 convolution makes the codes, and another reads them. By default it does but for
            `FSQ`, whose first codes would be near zero, so that few of its points were in use.
        groups: of the normalisations.
        smallest_group: channels that a group has at least (1 in Rombach et al.'s own code).

    Raises:
        ValueError: if the quantiser is for codes of another number of channels.
    """

    def __init__(
        self,
        channels: int,
        quantiser: Quantiser,
        code_channels: int = 3,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        features: int | None = None,
        code_convolutions: bool | None = None,
        groups: int = 32,
        smallest_group: int = 4,
    ) -> None:
        if code_convolutions is None:
            code_convolutions = not isinstance(quantiser, FSQ)
        super().__init__(
            channels, code_channels, 1, width, multipliers, blocks, attention, middle_attention, features,
            code_convolutions, groups, smallest_group,
        )  # fmt: skip
        if quantiser.width != code_channels:
            raise ValueError(
                f"expected code_channels={quantiser.width}, as {type(quantiser).__name__} has it, got {code_channels}: "
                "change one of the two"
            )
        self.quantiser = quantiser

    def moments(self, images: Tensor) -> Moments:
        return Moments(self.features(images))

    def decode(self, z: Tensor) -> Tensor:
        return self.images(self.quantiser(self.as_codes(z)).z)

    def reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        quantised = self.quantiser(self.features(images))
        return Reconstruction(self.images(quantised.z), quantised.loss, {}, quantised.index)


def _block(channels_in: int, channels: int, attends: bool, norm: Norm) -> UNetBlock:
    residual = ResidualBlock(channels_in, channels, None, norm=norm)
    return UNetBlock(residual, Attention(channels, norm=norm) if attends else None)


def _middle(channels: int, attends: bool, norm: Norm) -> list[UNetBlock]:
    return [_block(channels, channels, attends, norm), _block(channels, channels, False, norm)]
