"""What an importer makes of the weights of somebody else's autoencoder, before anything is built."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from scorefield.models.checkpoints.files import State
from scorefield.models.checkpoints.spec import Entry, joined, residual_block, same
from scorefield.models.latent import Channels
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import UNetBlock
from scorefield.models.networks.autoencoder import Convolutional, ImageAutoencoder, KLAutoencoder, VQAutoencoder
from scorefield.models.networks.quantisers import Codebook

# One number, or one for each channel of the codes.


@dataclass(frozen=True)
class AutoencoderSpec:
    """How to build and fill the autoencoder that a checkpoint holds.

    Args:
        build: makes the network.
        entries: what each of its tensors is made of.
        state: the weights, by their names there.
        weights: which they are: "ema", "raw" or "as stored".
        size: height and width of the images that it was trained on.
        scale: of its codes, None where the checkpoint does not tell.
        shift: likewise.
        extra: endings of names that a checkpoint may have beside its weights.
    """

    build: Callable[[], ImageAutoencoder]
    entries: Callable[[Any], Iterator[Entry]]
    state: State
    weights: str
    size: tuple[int, int]
    scale: Channels | None = None
    shift: Channels | None = None
    extra: tuple[str, ...] = ()


class Names(NamedTuple):
    """How a code base names the layers of the convolutional autoencoders.

    Args:
        residual: its names of a residual block's layers, by ours.
        shortcut: of a residual block.
        norm: of an attention.
        qkv: of its queries, keys and values.
        project: of its last layer.
        layer: names a layer of a level, by the way ("down" or "up"), its kind ("block", "attention" or "resample"), the
            level counted from full size, the number of levels, and which of its kind it is.
        middle: the names of the first block, the attention and the second block of the middle.
        stem, out_norm, head: of the encoder and of the decoder.
    """

    residual: Mapping[str, str]
    shortcut: str
    norm: str
    qkv: tuple[str, str, str]
    project: str
    layer: Callable[[str, str, int, int, int], str]
    middle: tuple[str, str, str]
    stem: str
    out_norm: str
    head: str

    def entries(self, network: Convolutional) -> Iterator[Entry]:
        """What each tensor of a network is made of."""
        levels = network.factor.bit_length()
        for part, layers, way in (
            ("encoder", network.encoder.down, "down"),
            ("decoder", network.decoder.up, "up"),
        ):
            yield from same(f"{part}.stem", f"{part}.{self.stem}")
            yield from self._way(layers, part, way, levels)
            yield from self._middle(getattr(network, part).middle, part)
            yield from same(f"{part}.norm", f"{part}.{self.out_norm}")
            yield from same(f"{part}.head", f"{part}.{self.head}")
        if isinstance(network.to_codes, nn.Conv2d):
            yield from same("to_codes", "quant_conv")
            yield from same("from_codes", "post_quant_conv")
        if isinstance(network, VQAutoencoder):
            yield Entry("quantiser.weight", ("quantize.embedding.weight",), lambda table: table)

    def _way(self, layers: nn.ModuleList, part: str, way: str, levels: int) -> Iterator[Entry]:
        level, i, step = (0, 0, 1) if way == "down" else (levels - 1, 0, -1)
        for k, layer in enumerate(layers):
            ours = f"{part}.{way}.{k}"
            if isinstance(layer, UNetBlock):
                theirs = [f"{part}.{self.layer(way, kind, level, levels, i)}" for kind in ("block", "attention")]
                yield from self._block(layer, ours, *theirs)
                i += 1
            else:
                yield from same(f"{ours}.conv", f"{part}.{self.layer(way, 'resample', level, levels, 0)}.conv")
                level, i = level + step, 0

    def _middle(self, blocks: nn.ModuleList, part: str) -> Iterator[Entry]:
        first, attention, second = (f"{part}.{name}" for name in self.middle)
        yield from self._block(blocks[0], f"{part}.middle.0", first, attention)
        yield from self._block(blocks[1], f"{part}.middle.1", second, attention)

    def _block(self, block: nn.Module, ours: str, residual: str, attention: str) -> Iterator[Entry]:
        assert isinstance(block, UNetBlock)
        yield from residual_block(block.residual, f"{ours}.residual", residual, self.residual, self.shortcut)
        if isinstance(block.attention, Attention):
            yield from same(f"{ours}.attention.norm", f"{attention}.{self.norm}")
            yield from self._project(f"{ours}.attention.qkv", attention, self.qkv)
            yield from self._project(f"{ours}.attention.project", attention, (self.project,))

    def _project(self, ours: str, attention: str, names: tuple[str, ...]) -> Iterator[Entry]:
        """1x1 convolutions side by side; "this|that" is either."""
        yield from joined(ours, tuple(f"{attention}.{name}" for name in names))


def convolutional(settings: Mapping[str, Any], codebook: int | None, legacy: bool = True) -> Convolutional:
    """The network of these settings, with a codebook of so many entries or none.

    A codebook is trained by its gradient, as the published ones are.
    """
    if codebook is None:
        return KLAutoencoder(**settings)
    quantiser = Codebook(codebook, settings["code_channels"], legacy=legacy, decay=None, restart=0.0)
    return VQAutoencoder(quantiser=quantiser, **settings)
