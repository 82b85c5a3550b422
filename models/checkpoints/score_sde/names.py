"""The tensors of score_sde_pytorch: which of ours each one is, and what their names and shapes tell."""

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from torch import Tensor, nn

from scorefield.models.checkpoints.spec import Entry, joined, same
from scorefield.models.hyperparameters import settings_of
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.resampling import Fir
from scorefield.models.networks.ncsnpp import NCSNpp, ResidualIn, ResidualOut, SkipIn, SkipOut, Stage
from scorefield.models.networks.unet import UNet


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the names and shapes of a network tell, by the names of their configuration; `levels` have attention.

    Without a first convolution they tell nothing. Modules are numbered as they are used. Blocks and attention of one
    size follow each other; what resamples (a convolution, a number without weights, or a block that projects onto the
    width that it has) ends them.
    """
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("all_modules.")})
    stem = next((n for n in numbers if _is(state, n, "weight") and state[f"all_modules.{n}.weight"].ndim == 4), None)
    if stem is None:
        return {}
    width, channels = state[f"all_modules.{stem}.weight"].shape[:2]
    runs: list[list[str]] = [[]]
    for number in range(stem + 1, numbers[-1]):
        if _is(state, number, "NIN_3.W"):
            runs[-1].append("attention")
        elif _is(state, number, "Conv_1.weight") and not _resamples(state, number):
            runs[-1].append(f"all_modules.{number}")
        else:
            runs.append([])
    # The way down; the deepest level's way down, the middle and its way up in one; the way up.
    runs = [run for run in runs if run]
    levels = runs[: (len(runs) + 1) // 2]
    plain = any(name.endswith(".NIN_0.W") and name.replace("NIN_0.W", "Conv_1.weight") in state for name in state)
    return {
        "num_channels": channels,
        "nf": width,
        "ch_mult": tuple(len(state[f"{run[0]}.Conv_0.weight"]) // width for run in levels),
        "num_res_blocks": (sum(module != "attention" for module in levels[-1]) - 3) // 2,
        "resblock_type": "ddpm" if plain else "biggan",
        "levels": tuple(i for i, run in enumerate(levels) if run[1:2] == ["attention"]),
    }


def _is(state: Mapping[str, Tensor], number: int, name: str) -> bool:
    return f"all_modules.{number}.{name}" in state


def _resamples(state: Mapping[str, Tensor], number: int) -> bool:
    shape = state[f"all_modules.{number}.Conv_0.weight"].shape
    return _is(state, number, "Conv_2.weight") and shape[0] == shape[1]


class _Modules:
    """Their flat list of modules, in the order in which the forward pass uses them."""

    def __init__(self) -> None:
        self._indices = count()

    def next(self) -> str:
        return f"all_modules.{next(self._indices)}"


def ddpm(network: UNet) -> Iterator[Entry]:
    """Of the network that they call ddpm."""
    modules = _Modules()
    yield from same("embed.perceptron.0", modules.next())
    yield from same("embed.perceptron.2", modules.next())
    yield from same("stem", modules.next())
    for i, layer in enumerate(network.down):
        yield from _layer(layer, f"down.{i}", modules)
    yield from _middle(network, modules)
    for i, layer in enumerate(network.up):
        yield from _layer(layer, f"up.{i}", modules)
    yield from same("norm", modules.next())
    yield from same("head", modules.next())


def ncsnpp(network: NCSNpp) -> Iterator[Entry]:
    """Of the network that they call ncsnpp."""
    modules = _Modules()
    if settings_of(network)["frequencies"] == "gaussian":
        theirs = f"{modules.next()}.W"
        if network.embed is not None:
            yield Entry("embed.frequencies", (theirs,), lambda w: 2 * math.pi * w)
    if network.embed is not None:
        yield from same("embed.perceptron.0", modules.next())
        yield from same("embed.perceptron.2", modules.next())
    yield from same("stem", modules.next())
    for name, stages in (("down", network.down), ("up", network.up)):
        if name == "up":
            yield from _middle(network, modules)
        for i, stage in enumerate(stages):
            assert isinstance(stage, Stage)
            for k, block in enumerate(stage.blocks):
                yield from _layer(block, f"{name}.{i}.blocks.{k}", modules)
            # On the way down the pyramid is joined after the resampling, on the way up before it.
            parts = ("resample", "pyramid") if name == "down" else ("pyramid", "resample")
            for part in parts:
                yield from _layer(getattr(stage, part), f"{name}.{i}.{part}", modules)
    if network.head is not None:
        yield from same("head.0", modules.next())
        yield from same("head.2", modules.next())


def _middle(network: UNet | NCSNpp, modules: _Modules) -> Iterator[Entry]:
    for name in ("middle_in", "middle_attention", "middle_out"):
        yield from _layer(getattr(network, name), name, modules)


def _layer(layer: nn.Module | None, ours: str, modules: _Modules) -> Iterator[Entry]:
    if isinstance(layer, UNetBlock):
        yield from _layer(layer.residual, f"{ours}.residual", modules)
        yield from _layer(layer.attention, f"{ours}.attention", modules)
    elif isinstance(layer, ResidualBlock):
        yield from _residual(layer, ours, modules.next())
    elif isinstance(layer, Attention):
        yield from _attention(ours, modules.next())
    elif isinstance(layer, SkipIn):
        yield from same(f"{ours}.conv", f"{modules.next()}.Conv_0")
    elif isinstance(layer, ResidualIn):
        yield from _resampling(layer.smaller, f"{ours}.smaller", modules)
    elif isinstance(layer, SkipOut):
        yield from same(f"{ours}.head.0", modules.next())
        yield from same(f"{ours}.head.2", modules.next())
    elif isinstance(layer, ResidualOut) and layer.larger is None:
        yield from same(f"{ours}.first.0", modules.next())
        yield from same(f"{ours}.first.2", modules.next())
    elif isinstance(layer, ResidualOut):
        yield from _resampling(layer.larger, f"{ours}.larger", modules)
    elif isinstance(layer, Fir):
        modules.next()
    elif layer is not None:
        yield from _resampling(layer, ours, modules)


def _resampling(layer: Any, ours: str, modules: _Modules) -> Iterator[Entry]:
    yield from same(f"{ours}.conv", f"{modules.next()}.{'Conv_0' if layer.blur is None else 'Conv2d_0'}")


def _residual(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Entry]:
    yield from same(f"{ours}.norm_in", f"{theirs}.GroupNorm_0")
    yield from same(f"{ours}.conv_in", f"{theirs}.Conv_0")
    if block.project is not None:
        yield from same(f"{ours}.project", f"{theirs}.Dense_0")
    yield from same(f"{ours}.norm_out", f"{theirs}.GroupNorm_1")
    yield from same(f"{ours}.conv_out", f"{theirs}.Conv_1")
    if isinstance(block.shortcut, nn.Conv2d):
        # BigGAN's blocks have a convolution there, DDPM's a matrix (in, out).
        yield Entry(f"{ours}.shortcut.weight", (f"{theirs}.Conv_2.weight|{theirs}.NIN_0.W",), _kernel)
        yield Entry(f"{ours}.shortcut.bias", (f"{theirs}.Conv_2.bias|{theirs}.NIN_0.b",), lambda b: b)


def _attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from same(f"{ours}.norm", f"{theirs}.GroupNorm_0")
    yield from joined(f"{ours}.qkv", tuple(f"{theirs}.NIN_{i}" for i in range(3)), "W", "b", make=_kernel)
    yield from joined(f"{ours}.project", (f"{theirs}.NIN_3",), "W", "b", make=_kernel)


def _kernel(weight: Tensor) -> Tensor:
    return weight.T[:, :, None, None] if weight.ndim == 2 else weight
