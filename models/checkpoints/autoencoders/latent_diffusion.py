"""First stages of latent-diffusion (Rombach et al. 2022), and of code bases that share its names.

These are taming-transformers, Stable Diffusion, MAR and VA-VAE. A file holds a first stage alone, or a whole latent
diffusion model with its first stage under `first_stage_model.`
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from scorefield.models.checkpoints.autoencoders.spec import AutoencoderSpec, Names, convolutional
from scorefield.models.checkpoints.files import State, lightning_state, read
from scorefield.models.checkpoints.spec import with_overrides

PREFIX, UNET = "first_stage_model.", "model.diffusion_model."
AVERAGE = "model_ema."
# What is beside the weights: losses with their networks, colours of maps, and what a codebook averages.
LEFT_OUT = ("loss.", AVERAGE, "colorize", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
# What the weights do not tell; a codebook's loss is that of the released code.
DEFAULTS: dict[str, Any] = {"resolution": 256, "scale_factor": None, "groups": 32, "legacy": True, "ema": True}


def _layer(way: str, kind: str, level: int, levels: int, i: int) -> str:
    layers = {"block": f"block.{i}", "attention": f"attn.{i}", "resample": f"{way}sample"}
    return f"{way}.{level}.{layers[kind]}"


NAMES = Names(
    residual={"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2"},
    shortcut="nin_shortcut",
    norm="norm",
    qkv=("q", "k", "v"),
    project="proj_out",
    layer=_layer,
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    stem="conv_in",
    out_norm="norm_out",
    head="conv_out",
)


def spec_of(path: Path, **architecture: Any) -> AutoencoderSpec:
    """How to build the first stage in a file; widths, levels, blocks, attention and codebook are read off the weights.

    Args:
        path: a file of Lightning (.ckpt), of a state dict (.pth, .pt), or safetensors.
        architecture: what the weights do not tell (`DEFAULTS`).

    Raises:
        ValueError: if it does not read, or has no first stage.
    """
    values = with_overrides(DEFAULTS, architecture)
    state, scale = _first_stage(read(path, skip_objects=True))
    state, weights = _averaged(state) if values["ema"] else (state, "as stored")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(LEFT_OUT)}
    settings = settings_of_state(state, values["groups"])
    codebook = state.get("quantize.embedding.weight")
    build = partial(convolutional, settings, None if codebook is None else len(codebook), values["legacy"])
    size = (values["resolution"],) * 2
    return AutoencoderSpec(build, NAMES.entries, state, weights, size, values["scale_factor"] or scale)


def holds_unet(path: Path) -> bool:
    """Whether a file holds a whole latent diffusion model.

    Raises:
        ValueError: if it does not read.
    """
    return any(name.startswith(UNET) for name in lightning_state(read(path, skip_objects=True)))


def settings_of_state(state: State, groups: int = 32) -> dict[str, Any]:
    """The constructor's keywords of the autoencoder with these weights, by the names of latent-diffusion.

    Raises:
        ValueError: if these are the weights of something else.
    """
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight")
    if absent := [name for name in needed if name not in state]:
        raise ValueError(
            f"expected a first stage of latent-diffusion with {absent[0]}, got {', '.join([*state][:3]) or 'nothing'} "
            ".. : give another --from"
        )
    width, channels = state["encoder.conv_in.weight"].shape[:2]
    levels = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.down\.(\d+)\.", name)))
    widths = [len(state[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(levels)]
    features = state["decoder.conv_in.weight"].shape[1]
    codes = state.get("post_quant_conv.weight")
    return {
        "channels": channels,
        "code_channels": features if codes is None else codes.shape[1],
        "width": width,
        "multipliers": tuple(each / width for each in widths),
        "blocks": sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in state),
        "attention": tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in state),
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "features": features,
        "code_convolutions": codes is not None,
        "groups": groups,
        "smallest_group": 1,
    }


def _first_stage(saved: Any) -> tuple[State, float | None]:
    """The weights of the first stage in what a file holds, and the scale of its codes if a latent model has it."""
    state = lightning_state(saved)
    scale = state.pop("scale_factor", None)
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return state, None if scale is None else float(scale)


def _averaged(state: State) -> tuple[State, str]:
    """The weights, with their averages in their place where the file has them: names without dots."""
    averages = {name: state.get(AVERAGE + name.replace(".", "")) for name in state}
    found = {name: average for name, average in averages.items() if average is not None}
    return {**state, **found}, "ema" if found else "as stored"
