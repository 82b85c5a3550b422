"""The tensors of EDM's networks (Karras et al. 2022): which of ours each one is."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.checkpoints.spec import Entry, cos_first, residual_block, same, with_unknown
from scorefield.models.hyperparameters import settings_of
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import UNetBlock
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.ncsnpp import NCSNpp, Stage

BLOCK = {"norm_in": "norm0", "conv_in": "conv0", "project": "affine", "norm_out": "norm1", "conv_out": "conv1"}


def entries(network: NCSNpp | ADM, size: int, prefix: str) -> Iterator[Entry]:
    """Of DDPM++ and NCSN++, or of ADM, for images of a size, their names behind a prefix."""
    found = _adm(network, size) if isinstance(network, ADM) else _song(network, size)
    for entry in found:
        yield entry._replace(theirs=tuple(prefix + name for name in entry.theirs))


def _song(network: NCSNpp, size: int) -> Iterator[Entry]:
    assert network.embed is not None
    if settings_of(network)["frequencies"] == "gaussian":
        yield Entry("embed.frequencies", ("map_noise.freqs",), lambda f: 2 * math.pi * f)
    if network.embed.labels is not None:
        yield Entry("embed.labels.weight", ("map_label.weight", "map_label.bias"), _first_labels)
    yield from _embedding(sines_first=True)
    yield from same("stem", f"enc.{size}x{size}_conv")
    for level, stage in enumerate(network.down):
        assert isinstance(stage, Stage)
        yield from _blocks(stage, f"down.{level}", f"enc.{size >> level}x{size >> level}")
        below = f"enc.{size >> level + 1}x{size >> level + 1}"
        if stage.resample is not None:
            yield from _unet_block(stage.resample, None, f"down.{level}.resample", "", f"{below}_down")
        if stage.pyramid is not None and settings_of(network)["pyramid_in"] == "residual":
            yield from same(f"down.{level}.pyramid.smaller.conv", f"{below}_aux_residual")
        elif stage.pyramid is not None:
            yield from same(f"down.{level}.pyramid.conv", f"{below}_aux_skip")
    deepest = size >> len(network.down) - 1
    yield from _middle(network, f"dec.{deepest}x{deepest}_in")
    for k, stage in enumerate(network.up):
        here = deepest << k
        yield from _blocks(stage, f"up.{k}", f"dec.{here}x{here}")
        if stage.pyramid is not None:
            yield from same(f"up.{k}.pyramid.head.0", f"dec.{here}x{here}_aux_norm")
            yield from same(f"up.{k}.pyramid.head.2", f"dec.{here}x{here}_aux_conv")
        if stage.resample is not None:
            yield from _unet_block(stage.resample, None, f"up.{k}.resample", "", f"dec.{2 * here}x{2 * here}_up")
    if network.head is not None:
        yield from same("head.0", f"dec.{size}x{size}_aux_norm")
        yield from same("head.2", f"dec.{size}x{size}_aux_conv")


def _blocks(stage: Any, ours: str, theirs: str) -> Iterator[Entry]:
    for i, block in enumerate(stage.blocks):
        name = f"{ours}.blocks.{i}"
        yield from _unet_block(
            block.residual, block.attention, f"{name}.residual", f"{name}.attention", f"{theirs}_block{i}"
        )


def _adm(network: ADM, size: int) -> Iterator[Entry]:
    if network.embed.labels is not None:
        yield Entry("embed.labels.weight", ("map_label.weight",), lambda w: with_unknown(w.T))
    yield from _embedding(sines_first=False)
    yield from same("stem", f"enc.{size}x{size}_conv")
    deepest = size >> len(settings_of(network)["multipliers"]) - 1
    for name, layers, start, resampling in (("down", network.down, size, "down"), ("up", network.up, deepest, "up")):
        here, i = start, 0
        for k, layer in enumerate(layers):
            way = "enc" if name == "down" else "dec"
            if isinstance(layer, UNetBlock):
                theirs = f"{way}.{here}x{here}_block{i}"
                ours = f"{name}.{k}"
                yield from _unet_block(layer.residual, layer.attention, f"{ours}.residual", f"{ours}.attention", theirs)
                i += 1
            else:
                here, i = (here // 2 if name == "down" else here * 2), 0
                yield from _unet_block(layer, None, f"{name}.{k}", "", f"{way}.{here}x{here}_{resampling}")
    yield from _middle(network, f"dec.{deepest}x{deepest}_in")
    yield from same("norm", "out_norm")
    yield from same("head", "out_conv")


def _middle(network: NCSNpp | ADM, theirs: str) -> Iterator[Entry]:
    yield from _unet_block(network.middle_in, network.middle_attention, "middle_in", "middle_attention", f"{theirs}0")
    yield from _unet_block(network.middle_out, None, "middle_out", "", f"{theirs}1")


def _embedding(sines_first: bool) -> Iterator[Entry]:
    """Their DDPM++ and NCSN++ swap cosines and sines back; their ADM has its cosines first."""
    first = (lambda w: w) if sines_first else cos_first
    yield Entry("embed.perceptron.0.weight", ("map_layer0.weight",), first)
    yield Entry("embed.perceptron.0.bias", ("map_layer0.bias",), lambda b: b)
    yield from same("embed.perceptron.2", "map_layer1")


def _unet_block(
    residual: Any, attention: nn.Module | None, ours: str, ours_attention: str, theirs: str
) -> Iterator[Entry]:
    yield from residual_block(residual, ours, theirs, BLOCK, "skip")
    if isinstance(attention, Attention):
        yield from same(f"{ours_attention}.norm", f"{theirs}.norm2")
        for part in ("weight", "bias"):
            yield Entry(f"{ours_attention}.qkv.{part}", (f"{theirs}.qkv.{part}",), _interleaved(attention.heads))
        yield from same(f"{ours_attention}.project", f"{theirs}.proj")


def _interleaved(heads: int) -> Callable[[Tensor], Tensor]:
    """Rows ordered by head, channel, and q, k, v, for ours by q, k, v, head, and channel."""

    def ordered(rows: Tensor) -> Tensor:
        split = rows.reshape(heads, -1, 3, *rows.shape[1:])
        return split.movedim(2, 0).reshape(rows.shape)

    return ordered


def _first_labels(weight: Tensor, bias: Tensor) -> Tensor:
    """One-hot labels times sqrt(classes) through a linear layer, as a table; "unknown" is no label at all."""
    table = weight.T * math.sqrt(weight.shape[1]) + bias
    return torch.cat([table, bias[None]])
