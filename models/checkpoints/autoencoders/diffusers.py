"""Autoencoders of diffusers: folders with config.json and weights of AutoencoderKL, VQModel or AutoencoderTiny."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scorefield.models.checkpoints.autoencoders import taesd
from scorefield.models.checkpoints.autoencoders.spec import AutoencoderSpec, Names, convolutional
from scorefield.models.checkpoints.diffusers.importer import configuration, state_of
from scorefield.models.checkpoints.diffusers.native import RENAMED
from scorefield.models.checkpoints.files import State
from scorefield.models.checkpoints.spec import with_overrides
from scorefield.models.latent import Channels

# Folders of a pipeline that hold its autoencoder.
PARTS = ("vae", "vqvae", "movq")
# Keywords of the three classes with what they take them to be if they are left out.
CONVOLUTIONAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
}
KL = {**CONVOLUTIONAL, "latent_channels": 4, "use_quant_conv": True, "use_post_quant_conv": True}
VQ = {
    **CONVOLUTIONAL, "latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None, "norm_type": "group",
    "lookup_from_codebook": False,
}  # fmt: skip
TINY: dict[str, Any] = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "sample_size": None,
}
# What these have and what does not change the network.
UNUSED = ("force_upcast", "freeze", "latent_magnitude", "latent_shift")
BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
BLOCKS_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


def _layer(way: str, kind: str, level: int, levels: int, i: int) -> str:
    layers = {"block": f"resnets.{i}", "attention": f"attentions.{i}", "resample": f"{way}samplers.0"}
    return f"{way}_blocks.{level if way == 'down' else levels - 1 - level}.{layers[kind]}"


NAMES = Names(
    residual={"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2"},
    shortcut="conv_shortcut",
    norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    project="to_out.0",
    layer=_layer,
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    stem="conv_in",
    out_norm="conv_norm_out",
    head="conv_out",
)


def folder_of(path: Path) -> Path | None:
    """The folder of the autoencoder at a path, which is a folder, its weights or a pipeline; None if there is none."""
    places = (path, *(path / part for part in PARTS)) if path.is_dir() else (path.parent,) if path.is_file() else ()
    for place in places:
        try:
            kind = json.loads((place / "config.json").read_text(encoding="utf-8"))["_class_name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if kind in CLASSES:
            return place
    return None


def spec_of(path: Path, **architecture: Any) -> AutoencoderSpec:
    """How to build the autoencoder in a folder.

    Args:
        path: of the folder, of a pipeline with such a folder, or of the weights in it.
        architecture: keywords of its class that its config.json does not have, or has wrongly.

    Raises:
        ValueError: for a folder without one, or an autoencoder that ours is not the same as.
    """
    folder = folder_of(path)
    if folder is None:
        raise ValueError(
            f"expected a folder with config.json of {', '.join(CLASSES)}, or one with such a "
            f"folder {' or '.join(PARTS)}, got {path}"
        )
    kind, config = configuration(folder / "config.json")
    known, make = CLASSES[kind]
    given = {key: value for key, value in config.items() if key in known}
    return make(with_overrides({**known, **given}, architecture), state_of(folder))


def _kl(values: Mapping[str, Any], state: State) -> AutoencoderSpec:
    convolutions = values["use_quant_conv"]
    if values["use_post_quant_conv"] != convolutions:
        raise ValueError(
            f"expected use_post_quant_conv={convolutions}, as use_quant_conv, got {values['use_post_quant_conv']}"
        )
    settings = {**_settings(values), "code_channels": values["latent_channels"], "code_convolutions": convolutions}
    return _spec(values, state, settings, None)


def _vq(values: Mapping[str, Any], state: State) -> AutoencoderSpec:
    if values["norm_type"] != "group" or values["lookup_from_codebook"]:
        raise ValueError(
            f"expected norm_type=group and lookup_from_codebook=false, got {values['norm_type']} and "
            f"{values['lookup_from_codebook']}: this decoder looks at the codes in every layer, ours does not"
        )
    features = values["latent_channels"]
    settings = {**_settings(values), "code_channels": values["vq_embed_dim"] or features, "features": features}
    return _spec(values, state, settings, values["num_vq_embeddings"])


def _spec(
    values: Mapping[str, Any], state: State, settings: Mapping[str, Any], codebook: int | None
) -> AutoencoderSpec:
    for old, new in RENAMED.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    scale, shift = _scale(values)
    build = partial(convolutional, settings, codebook)
    return AutoencoderSpec(build, NAMES.entries, state, "as stored", _size(values, 256), scale, shift)


def _tiny(values: Mapping[str, Any], state: State) -> AutoencoderSpec:
    expected = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
    if wrong := [key for key in expected if values[key] != expected[key]]:
        raise ValueError(
            f"expected {wrong[0]}={expected[wrong[0]]}, as the tiny autoencoder has, got {values[wrong[0]]}"
        )
    scale, shift = _scale(values)
    return taesd.spec_of_state(taesd.from_diffusers(state), _size(values, 512), scale, shift)


CLASSES: dict[str, tuple[dict[str, Any], Callable[[Mapping[str, Any], State], AutoencoderSpec]]] = {
    "AutoencoderKL": (KL, _kl),
    "VQModel": (VQ, _vq),
    "AutoencoderTiny": (TINY, _tiny),
}


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that both convolutional autoencoders share."""
    down, up = values["down_block_types"], values["up_block_types"]
    if any(kind not in BLOCKS for kind in down) or any(kind not in BLOCKS_UP for kind in up):
        raise ValueError(f"expected blocks of {', '.join((*BLOCKS, *BLOCKS_UP))}, got {down} and {up}")
    attends = [BLOCKS[kind] for kind in down]
    widths = values["block_out_channels"]
    if attends != [BLOCKS_UP[kind] for kind in reversed(up)] or len(attends) != len(widths):
        raise ValueError(f"expected a decoder that mirrors the encoder {tuple(down)}, got {tuple(up)} of {widths}")
    if values["act_fn"] not in ("silu", "swish") or values["in_channels"] != values["out_channels"]:
        raise ValueError(
            "expected act_fn=silu and as many channels out as in, got "
            f"{values['act_fn']}, {values['in_channels']} in and {values['out_channels']} out"
        )
    return {
        "channels": values["in_channels"],
        "width": widths[0],
        "multipliers": tuple(width / widths[0] for width in widths),
        "blocks": values["layers_per_block"],
        "attention": tuple(level for level, attending in enumerate(attends) if attending),
        "middle_attention": values["mid_block_add_attention"],
        "groups": values["norm_num_groups"],
        "smallest_group": 1,
    }


def _scale(values: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """The scale and shift with which a pipeline takes its codes, scale (z - shift)."""
    scale, mean, std = values["scaling_factor"], values.get("latents_mean"), values.get("latents_std")
    if mean is not None and std is not None:
        return tuple(scale / each for each in std), tuple(mean)
    return scale, values["shift_factor"] or 0.0


def _size(values: Mapping[str, Any], otherwise: int) -> tuple[int, int]:
    size = values["sample_size"] or otherwise
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
