"""Checkpoints of score_sde_pytorch (Song et al. 2021): `ddpm` and `ncsnpp` along VE, VP and sub-VP."""

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from models.importers import ncsnv2
from models.importers.files import FOURIER
from models.importers.published import SCORE_SDE
from models.importers.recipe import Entry, Recipe, joined, levels_at, same, taken
from models.layers import Attention, ResidualBlock
from models.ncsnpp import NCSNpp, Stage
from models.precondition import Told
from models.pyramids import ResidualIn, ResidualOut, SkipIn, SkipOut
from models.recorded import settings_of
from models.resampling import Fir
from models.unet import Block, UNet
from sde_lib import SDE, VESDE, VPSDE, DiscreteVPSDE, SubVPSDE

PYRAMIDS = {"none": "none", "input_skip": "skip", "output_skip": "skip", "residual": "residual"}
# What their configurations hold, by their own names, with the values that nearly all have.
DEFAULTS: dict[str, Any] = {
    "config": None,
    "name": "ncsnpp",
    "sde": "vpsde",
    "continuous": True,
    "centered": None,
    "image_size": 32,
    "num_channels": 3,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "num_scales": 1000,
    "nf": 128,
    "ch_mult": (1, 2, 2, 2),
    "num_res_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.1,
    "resamp_with_conv": True,
    "conditional": True,
    "scale_by_sigma": None,
    "fir": True,
    "fir_kernel": (1, 3, 3, 1),
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "embedding_type": "positional",
    # Read by their code, and of no consequence here.
    "fourier_scale": 16.0,
    "init_scale": 0.0,
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "attention_type": "ddpm",
    "conv_size": 3,
}
IDLE = {"normalization": "GroupNorm", "nonlinearity": "swish", "attention_type": "ddpm", "conv_size": 3}


def recipe(state: Mapping[str, Tensor], **architecture: Any) -> Recipe:
    """How to build what a state dict of theirs holds.

    Args:
        state: their state dict.
        architecture: values of their configuration by their own names (`DEFAULTS`), or `config`, the name of a
            published one, as "ve/cifar10_ncsnpp_continuous". With neither, it is the published one whose tensors these
            are, if there is one alone.

    Raises:
        ValueError: for a name or a configuration that they do not have, or one that this network has no switch for.
    """
    if "begin_conv.weight" in state:
        return ncsnv2.recipe(state, **architecture)
    if architecture:
        return _of_values(architecture, state)
    fitting = {name: values for name, values in SCORE_SDE.items() if _fits(state, _of_values(values))}
    if any(values["sde"] == "vesde" for values in fitting.values()) and "sigmas" in state:
        ends = _ends(state)
        fitting = {name: values for name, values in fitting.items() if _told_ends(values) == ends}
    if fitting and all(values == next(iter(fitting.values())) for values in fitting.values()):
        return _of_values(next(iter(fitting.values())))
    several = f"those of {', '.join(fitting)}" if fitting else "of none of the published configurations"
    raise ValueError(f"the weights are {several}: say which with config=, or give the values of their configuration")


def _fits(state: Mapping[str, Tensor], recipe: Recipe) -> bool:
    """Whether the tensors of a state dict are those of a network: their names, and how many numbers there are."""
    with torch.device("meta"):
        network = recipe.network(**recipe.settings)
        ours, entries = network.state_dict(), list(recipe.entries(network))
    names = [name.split("|") for entry in entries for name in entry.theirs]
    numbers = sum(ours[entry.ours].numel() for entry in entries)
    found = {next((name for name in either if name in state), "") for either in names}
    needed = {name for name in state if not name.endswith(recipe.extra)}
    return found == needed and numbers == sum(state[name].numel() for name in needed)


def _ends(state: Mapping[str, Tensor]) -> tuple[float, float, int]:
    """The largest and smallest noise level, and their number, as the buffer has them."""
    sigmas = state["sigmas"].double()
    return round(float(sigmas.max()), 3), round(float(sigmas.min()), 6), len(sigmas)


def _told_ends(values: Mapping[str, Any]) -> tuple[float, float, int]:
    values = {**DEFAULTS, **values}
    return round(float(values["sigma_max"]), 3), round(float(values["sigma_min"]), 6), int(values["num_scales"])


def _of_values(architecture: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> Recipe:
    config = architecture.get("config")
    if config is not None and config not in SCORE_SDE:
        raise ValueError(f"expected config to be one of {', '.join(SCORE_SDE)}, got {config!r}")
    values = taken({**DEFAULTS, **(SCORE_SDE[config] if config else {})}, architecture)
    for key, one in IDLE.items():
        if values[key] != one:
            raise ValueError(f"expected {key} to be {one!r}, as in all published ones, got {values[key]!r}")
    if values["name"] not in ("ddpm", "ncsnpp"):
        raise ValueError(f"expected name to be ddpm or ncsnpp, got {values['name']!r}")
    ve = values["sde"] == "vesde"
    if ve and state is not None and "sigmas" in state and _told_ends(values) != _ends(state):
        raise ValueError(
            f"expected sigma_max, sigma_min and num_scales to be {_ends(state)}, as the weights' sigmas have them, got "
            f"{_told_ends(values)}"
        )
    centered = values["centered"] if values["centered"] is not None else not ve
    network: type[nn.Module] = UNet if values["name"] == "ddpm" else NCSNpp
    settings = _ddpm(values) if network is UNet else _ncsnpp(values)
    size, channels = values["image_size"], values["num_channels"]
    return Recipe(
        network,
        {"channels": channels, "unit_range": not centered, **settings},
        _ddpm_entries if network is UNet else _ncsnpp_entries,
        _precondition(values),
        _path(values),
        (channels, size, size),
        low=-1.0 if centered else 0.0,
        # A network that is told nothing keeps, unused, what would have told it.
        extra=("sigmas",) if values["conditional"] else ("sigmas", "Dense_0.weight", "Dense_0.bias", FOURIER),
    )


def _path(values: Mapping[str, Any]) -> SDE:
    beta_min, beta_max, steps = values["beta_min"], values["beta_max"], values["num_scales"]
    if values["sde"] == "vesde":
        return VESDE(float(values["sigma_min"]), float(values["sigma_max"]))
    if values["sde"] == "subvpsde":
        return SubVPSDE(beta_min, beta_max)
    if values["sde"] != "vpsde":
        raise ValueError(f"expected sde to be vpsde, subvpsde or vesde, got {values['sde']!r}")
    return (
        VPSDE(beta_min, beta_max)
        if values["continuous"]
        else DiscreteVPSDE("linear", steps, beta_min / steps, beta_max / steps)
    )


def _precondition(values: Mapping[str, Any]) -> Told:
    sde, steps = _path(values), values["num_scales"]
    if isinstance(sde, VESDE):
        # Discrete levels are counted from the largest.
        predicts = "scaled_score" if values["scale_by_sigma"] is not False else "score"
        if values["embedding_type"] == "fourier" and values["name"] == "ncsnpp":
            return Told(sde, predicts, "log_sigma")
        return Told(sde, predicts, "time", 1.0 - steps, steps - 1.0)
    if isinstance(sde, DiscreteVPSDE):
        return Told(sde, "eps", "time", float(steps), -1.0)
    return Told(sde, "eps", "time", 999.0)


def _levels(values: Mapping[str, Any]) -> tuple[int, ...]:
    return levels_at(values["image_size"], values["attn_resolutions"], len(values["ch_mult"]))


def _ddpm(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": values["nf"],
        "multipliers": tuple(values["ch_mult"]),
        "blocks": values["num_res_blocks"],
        "attention": _levels(values),
        "attention_up": "last",
        "dropout": values["dropout"],
        "frequencies": "timesteps",
        "smallest_group": 1,
        "resample_conv": values["resamp_with_conv"],
    }


def _ncsnpp(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": values["nf"],
        "multipliers": tuple(values["ch_mult"]),
        "blocks": values["num_res_blocks"],
        "attention": _levels(values),
        "biggan": values["resblock_type"].lower() == "biggan",
        "resample_conv": values["resamp_with_conv"],
        "fir": tuple(values["fir_kernel"]) if values["fir"] else (1, 1),
        "pyramid_in": PYRAMIDS[values["progressive_input"].lower()],
        "combine": values["progressive_combine"].lower(),
        "pyramid_out": PYRAMIDS[values["progressive"].lower()],
        "rescale": values["skip_rescale"],
        "dropout": values["dropout"],
        "frequencies": "gaussian" if values["embedding_type"].lower() == "fourier" else "timesteps",
        "conditional": values["conditional"],
    }


class _Modules:
    """Their flat list of modules, in the order in which the forward pass uses them."""

    def __init__(self) -> None:
        self._indices = count()

    def next(self) -> str:
        return f"all_modules.{next(self._indices)}"


def _ddpm_entries(network: UNet) -> Iterator[Entry]:
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


def _ncsnpp_entries(network: NCSNpp) -> Iterator[Entry]:
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
    if isinstance(layer, Block):
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
