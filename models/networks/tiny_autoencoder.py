"""Tiny autoencoders without normalisation: the family of TAESD (Bohan 2023, github.com/madebyollin/taesd)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.initial import channels_last
from scorefield.models.layers.norm import GroupNorm
from scorefield.models.layers.resampling import Downsample, Upsample
from scorefield.models.moments import Moments, Reconstruction
from scorefield.models.networks.autoencoder import ImageAutoencoder

# The decoder takes codes within about -3 .. 3; beyond, they are softly clipped.
BOUND = 3.0
# Of the normalisation in a block with a pool, and how much wider it is.
POOL_GROUPS, POOL_WIDTH = 4, 4


class TinyBlock(nn.Module):
    """Three 3x3 convolutions as a residual, relu(x + conv(relu(conv(relu(conv(x)))))).

    Args:
        channels: in and out.
        pool: first add  W relu(norm(V x)). The norm is over all pixels of an image, so each depends on all (TAEF2).
    """

    def __init__(self, channels: int, pool: bool = False) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.pool: nn.Module | None = None
        if pool:
            wide = POOL_WIDTH * channels
            self.pool = nn.Sequential(
                nn.Conv2d(channels, wide, 1, bias=False),
                GroupNorm(POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        first, second, third = self.convolutions
        return relu(x + third(relu(second(relu(first(x))))))


@save_hyperparameters
class TinyAutoencoder(ImageAutoencoder):
    """A deterministic autoencoder of plain convolutions and ReLU, quick enough to look at codes while sampling.

    The defaults are TAESD's. Any number of channels; height and width divisible by f, square or not.

    Args:
        channels: of the images.
        code_channels: of the codes: 4 (TAESD), 16 (TAESD3, TAEF1), 32 (TAEF2, TAESANA).
        widths: of the encoder's levels, from full size down; the size halves between levels.
        blocks: of each level.
        decoder_widths: of the decoder's levels, from the codes' size up; by default the encoder's reversed.
        decoder_blocks: of each level; by default the encoder's reversed, with one block at full size.
        pool: of the blocks at the codes' size, see `TinyBlock` (TAEF2).
        early: channels between convolutions of stride 2 that stand before the first level, in the place of one at full
            size: (32,) means two of them (TAESANA).

    Raises:
        ValueError: for lists of other lengths.
    """

    def __init__(
        self,
        channels: int,
        code_channels: int = 4,
        widths: Sequence[int] = (64, 64, 64, 64),
        blocks: Sequence[int] = (1, 3, 3, 3),
        decoder_widths: Sequence[int] | None = None,
        decoder_blocks: Sequence[int] | None = None,
        pool: bool = False,
        early: Sequence[int] = (),
    ) -> None:
        halvings = len(widths) - 1 + (len(early) + 1 if early else 0)
        super().__init__(channels, code_channels, 2**halvings)
        larger = halvings + 1 - len(widths)  # levels that the decoder has and the encoder does not
        up = tuple(decoder_widths or (*reversed(widths), *(widths[0],) * larger))
        up_blocks = tuple(decoder_blocks or (*reversed(blocks[1:]), *(blocks[-1],) * larger, blocks[0]))
        if len(blocks) != len(widths) or not len(up) == len(up_blocks) == halvings + 1:
            raise ValueError(
                f"expected blocks for {len(widths)} levels, and {halvings + 1} levels of the decoder, got "
                f"{tuple(blocks)}, widths {up} and blocks {up_blocks}: give a number for each level"
            )
        self.encoder = nn.Sequential(*_stem(channels, widths[0], early))
        for level, count in enumerate(blocks):
            if level > 0:
                self.encoder.append(Downsample(widths[level - 1], widths[level], symmetric=True, bias=False))
            self.encoder.extend(TinyBlock(widths[level], pool and level == len(widths) - 1) for _ in range(count))
        self.encoder.append(nn.Conv2d(widths[-1], code_channels, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(code_channels, up[0], 3, padding=1), nn.ReLU())
        for level, count in enumerate(up_blocks):
            if level > 0:
                self.decoder.append(Upsample(up[level - 1], up[level], bias=False))
            self.decoder.extend(TinyBlock(up[level], pool and level == 0) for _ in range(count))
        self.head = nn.Conv2d(up[-1], channels, 3, padding=1)
        channels_last(self)

    def moments(self, images: Tensor) -> Moments:
        return Moments(self.encoder((self.as_images(images) + 1) / 2))

    def decode(self, z: Tensor) -> Tensor:
        clipped = BOUND * (self.as_codes(z) / BOUND).tanh()
        images: Tensor = 2 * self.head(self.decoder(clipped)) - 1
        return images

    def reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        z = self.encode(images)
        return Reconstruction(self.decode(z), z.new_zeros(len(z)), {})

    @property
    def last_layer(self) -> Tensor:
        return self.head.weight


def _stem(channels: int, width: int, early: Sequence[int]) -> list[nn.Module]:
    if not early:
        return [nn.Conv2d(channels, width, 3, padding=1)]
    layers: list[nn.Module] = []
    for before, after in zip((channels, *early), (*early, width), strict=True):
        layers += [Downsample(before, after, symmetric=True), nn.ReLU()]
    return layers
