"""TAESD's family (github.com/madebyollin/taesd): TAESD, TAESDXL, TAESD3, TAEF1, TAEF2, TAESANA, as pairs of files."""

import re
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from scorefield.models.checkpoints.autoencoders.spec import AutoencoderSpec
from scorefield.models.checkpoints.files import State, read, weights_of
from scorefield.models.checkpoints.spec import Entry, same, with_overrides
from scorefield.models.latent import Channels
from scorefield.models.layers.resampling import Downsample, Upsample
from scorefield.models.networks.tiny_autoencoder import TinyAutoencoder, TinyBlock

# What the weights do not tell.
DEFAULTS: dict[str, Any] = {"resolution": 512}
SIDES = ("encoder", "decoder")
ENDINGS = (".pth", ".pt", ".safetensors")
POOL = (0, 1, 3)  # the layers of a pool that have weights


def spec_of(path: Path, **architecture: Any) -> AutoencoderSpec:
    """How to build the autoencoder in a pair of files, NAME_encoder.pth and NAME_decoder.pth.

    Args:
        path: either file, or a folder that has one such pair.
        architecture: what the weights do not tell (`DEFAULTS`).

    Raises:
        ValueError: if one of the two is missing, or does not read, or there are several pairs.
    """
    size = (with_overrides(DEFAULTS, architecture)["resolution"],) * 2
    pair = dict(zip(SIDES, pair_of(path), strict=True))
    return spec_of_state(
        {f"{side}.{name}": tensor for side, file in pair.items() for name, tensor in weights_of(read(file))[0].items()},
        size,
    )


def pair_of(path: Path) -> tuple[Path, Path]:
    """The files of the encoder and of the decoder at a path.

    Raises:
        ValueError: if one is missing, or a folder has none or several.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and "encoder" in file.name)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ValueError(f"expected one *encoder.pth with its decoder in {path}, got {names}: give a file's path")
        path = files[0]
    side = next((side for side in SIDES if side in path.name), None)
    if side is None:
        raise ValueError(f"expected a file NAME_encoder.pth or NAME_decoder.pth of TAESD's family, got {path}")
    encoder, decoder = (path.with_name(path.name.replace(side, other)) for other in SIDES)
    for file in (encoder, decoder):
        if not file.is_file():
            raise ValueError(f"expected both {encoder.name} and {decoder.name} in {path.parent}, no {file.name} there")
    return encoder, decoder


def from_diffusers(state: State) -> State:
    """The weights of an AutoencoderTiny of diffusers by the names of TAESD: there, the decoder's first layer clips."""
    named = {}
    for name, tensor in state.items():
        side, _, rest = name.partition(".layers.")
        number, _, part = rest.partition(".")
        place = int(number) + (side == "decoder") if number.isdigit() else number
        named[f"{side}.{place}.{part}"] = tensor
    return named


def spec_of_state(
    state: State, size: tuple[int, int], scale: Channels | None = None, shift: Channels | None = None
) -> AutoencoderSpec:
    """How to build an autoencoder of these weights, by the names "encoder.0.weight", "decoder.1.weight" and so on."""
    build = partial(TinyAutoencoder, **settings_of_state(state))
    return AutoencoderSpec(build, entries, state, "as stored", size, scale, shift)


def settings_of_state(state: State) -> dict[str, Any]:
    """The constructor's keywords of the autoencoder with these weights.

    Raises:
        ValueError: if these are the weights of something else.
    """
    stem, levels, last = _levels(state, "encoder")
    first, up, _ = _levels(state, "decoder")
    if not levels or not up or len(first) != 1:
        raise ValueError(f"expected layers of TAESD's family, got {', '.join([*state][:3])} .. : give another --from")
    early = tuple(shape[0] for shape in stem[:-1])
    return {
        "channels": stem[0][1],
        "code_channels": last[0],
        "widths": tuple(width for width, _ in levels),
        "blocks": tuple(count for _, count in levels),
        "decoder_widths": tuple(width for width, _ in up),
        "decoder_blocks": tuple(count for _, count in up),
        "pool": any(".pool." in name for name in state),
        "early": early,
    }


def _levels(state: State, side: str) -> tuple[list[tuple[int, ...]], list[tuple[int, int]], tuple[int, ...]]:
    """The shapes of the first convolutions, the width and blocks of each level, and the shape of the last convolution.

    Convolutions between levels have no bias, and all others have.
    """
    layers: dict[int, str] = {}
    for name in state:
        if match := re.fullmatch(rf"{side}\.(\d+)\.(conv\.0\.)?weight", name):
            layers[int(match[1])] = name
    first: list[tuple[int, ...]] = []
    levels: list[tuple[int, int]] = []
    for number, name in sorted(layers.items())[:-1]:
        shape = tuple(state[name].shape)
        if ".conv." in name:
            levels = levels or [(shape[0], 0)]
            levels[-1] = (levels[-1][0], levels[-1][1] + 1)
        elif f"{side}.{number}.bias" in state:
            first.append(shape)
        else:
            levels = levels or [(first[-1][0], 0)]
            levels.append((shape[0], 0))
    return first, levels, tuple(state[layers[max(layers)]].shape) if layers else ()


def entries(network: TinyAutoencoder) -> Iterator[Entry]:
    """What each tensor of a network is made of."""
    yield from _layers(network.encoder, "encoder", 0)
    after = yield from _layers(network.decoder, "decoder", 1)  # after what clips the codes
    yield from same("head", f"decoder.{after}")


def _layers(layers: nn.Sequential, side: str, number: int) -> Generator[Entry, None, int]:
    """The entries of layers that are numbered from `number` there, and the number after them."""
    for k, layer in enumerate(layers):
        ours, number = f"{side}.{k}", number + isinstance(layer, Upsample)  # which is two layers there
        theirs = f"{side}.{number}"
        if isinstance(layer, TinyBlock):
            for i in range(len(layer.convolutions)):
                yield from same(f"{ours}.convolutions.{i}", f"{theirs}.conv.{2 * i}")
            for i in POOL if layer.pool is not None else ():
                yield from same(f"{ours}.pool.{i}", f"{theirs}.pool.{i}", bias=i == 1)
        elif isinstance(layer, Downsample | Upsample):
            yield from same(f"{ours}.conv", theirs, bias=layer.conv.bias is not None)
        elif isinstance(layer, nn.Conv2d):
            yield from same(ours, theirs)
        number += 1
    return number
