"""Checkpoints of latent-diffusion, and of Stable Diffusion 1 and 2 in that form."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.models.checkpoints.autoencoders import load_autoencoder_checkpoint
from scorefield.models.checkpoints.files import State, lightning_state, read
from scorefield.models.checkpoints.guided_diffusion import entries as unet_entries
from scorefield.models.checkpoints.guided_diffusion import levels_of
from scorefield.models.checkpoints.latent_diffusion import conditioning
from scorefield.models.checkpoints.spec import (
    CheckpointSpec,
    Entry,
    FirstStage,
    check_attention,
    check_inferred,
    levels_at,
    with_overrides,
)
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.conditioners import TextTransformer
from scorefield.models.networks.adm import ADM
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import DiscreteVPSDE

UNET, FIRST_STAGE, AVERAGE = "model.diffusion_model.", "first_stage_model.", "model_ema."
# The keywords of their classes, by their own names; None: the weights tell, or it must be said.
DEFAULTS: dict[str, Any] = {
    "image_size": None,
    "in_channels": None,
    "model_channels": None,
    "out_channels": None,
    "num_res_blocks": None,
    "attention_resolutions": None,
    "channel_mult": None,
    "dropout": 0.0,
    "num_heads": None,
    "num_head_channels": None,
    "use_scale_shift_norm": None,
    "resblock_updown": None,
    "use_spatial_transformer": None,
    "transformer_depth": None,
    "context_dim": None,
    "num_classes": None,
    "linear_start": 1e-4,
    "linear_end": 2e-2,
    "timesteps": 1000,
    "beta_schedule": "linear",
    "parameterization": "eps",
    "scale_factor": None,
    "n_classes": None,  # of the class embedder, without the row for no class
    "n_stages": 2,  # halvings of a semantic map
    "no_object_classes": None,  # with it, the text transformer reads boxes
}
# What the weights of the released models do not tell, by width, multipliers and the width of the context.
WIDE = {"image_size": 64, "num_head_channels": 32}
TEXT = {"num_heads": 8, "scale_factor": 0.18215}
RELEASED: dict[tuple[int, tuple[float, ...], int | None], dict[str, Any]] = {
    (224, (1, 2, 3, 4), None): WIDE,  # CelebA-HQ, FFHQ, bedrooms
    (192, (1, 2, 2, 4, 4), None): {"image_size": 32, "num_heads": 8},  # churches
    (256, (1, 2, 4), 512): {**WIDE, "image_size": 32},  # ImageNet on codes of f = 8
    (192, (1, 2, 3, 5), 512): {"image_size": 64, "num_heads": 1},  # ImageNet on codes of f = 4
    (192, (1, 2, 3, 5), 640): WIDE,  # text, 256 x 256
    (320, (1, 2, 4, 4), 1280): {"image_size": 32, **TEXT},  # text, LAION
    (320, (1, 2, 4, 4), 768): {"image_size": 64, **TEXT},  # Stable Diffusion 1
    (320, (1, 2, 4, 4), 1024): {"image_size": 64, "num_head_channels": 64, "scale_factor": 0.18215},  # and 2
    (128, (1, 2, 3, 4), 512): {**WIDE, "no_object_classes": 8100},  # boxes; how many classes is not published
    (128, (1, 4, 8), None): {"image_size": 64, "num_heads": 8},  # semantic maps
    (160, (1, 2, 2, 4), None): WIDE,  # super-resolution
    (256, (1, 2, 3, 4), None): {"image_size": 64, "num_heads": 8},  # inpainting
}
PREDICTS = {"eps": "eps", "v": "v", "x0": "x0"}


def read_checkpoint(
    path: Path, ema: bool = True, both: bool = False, **architecture: Any
) -> tuple[CheckpointSpec, dict[str, State]]:
    """How to build what a file holds, and its weights by their kind: the requested ones come last.

    The first stage and the conditioner come along where the file has them and they are ours. Objects of Lightning in
    the file are skipped, and nothing of theirs is run.

    Args:
        path: a file of Lightning (.ckpt), of a state dict, or safetensors.
        ema: the averaged weights where the file has them.
        both: also the raw weights.
        architecture: keywords of their classes (`DEFAULTS`) that the weights do not tell. For others than the released
            models `num_heads` or `num_head_channels` must be said, and `scale_factor` where it is not in the file.

    Raises:
        ValueError: for another file, a keyword that they do not have, or one that the weights contradict.
    """
    state = lightning_state(read(path, skip_objects=True))
    spec = spec_of(state, **architecture)
    if any(name.startswith(FIRST_STAGE) for name in state):
        opened = load_autoencoder_checkpoint(path, "latent_diffusion")
        found = state["scale_factor"] if "scale_factor" in state else _released(state).get("scale_factor", 1.0)
        scale = float(architecture.get("scale_factor") or found)
        size = (spec.shape[1] * opened.module.factor, spec.shape[2] * opened.module.factor)
        first_stage = FirstStage(opened.module, (opened.module.channels, *size), scale)
        spec = dataclasses.replace(spec, first_stage=first_stage)
    raw = _weights(state, spec, averaged=False)
    averaged = _weights(state, spec, averaged=True)
    if averaged is None:
        return spec, {"as stored": raw or {}}
    if not ema:
        return spec, {"raw": raw or {}}
    return spec, ({"raw": raw or {}} if both else {}) | {"ema": averaged}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds; widths, levels, blocks, attention and betas are read off it.

    Args:
        state: their state dict, with the U-Net under `model.diffusion_model.`
        architecture: as `read_checkpoint` takes it.

    Raises:
        ValueError: as there.
    """
    unet = _unet(state)
    values = with_overrides({**DEFAULTS, **_released(state)}, _without_rival_heads(architecture))
    sizes = check_inferred(_sizes(unet), values)
    if values["num_heads"] is None and values["num_head_channels"] in (None, -1):
        raise ValueError("expected num_heads or num_head_channels, which the weights of this model do not tell")
    if values["parameterization"] not in PREDICTS:
        raise ValueError(
            f"expected parameterization to be one of {', '.join(PREDICTS)}, got {values['parameterization']!r}"
        )
    side = values["image_size"] or 32
    settings = _settings(sizes, _attention(unet, side, values), values)
    channels, concat, context = settings["channels"], settings["concat"], settings["context"]
    conditioner = conditioning.conditioner_of(state, channels, concat, context, values)
    sde = _path(state, values)
    predicts = TimeConditioned(sde, PREDICTS[values["parameterization"]], "time", float(sde.steps), -1.0)
    return CheckpointSpec(
        ADM,
        settings,
        entries,
        predicts,
        sde,
        (channels, side, side),
        unlabelled=_unlabelled(state, conditioner, values),
        extra=(),
        conditioner=conditioner,
    )


def _sizes(unet: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the weights of a U-Net tell, by their own keywords."""
    width, levels = unet["time_embed.0.weight"].shape[1], levels_of(unet)
    shifts = len(unet["input_blocks.1.0.emb_layers.1.weight"]) > len(unet["input_blocks.1.0.out_layers.0.weight"])
    updown = not any(".op." in name or (".conv." in name and name.startswith("output")) for name in unet)
    context, depth = _transformer(unet)
    return {
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "model_channels": width,
        "out_channels": len(unet["out.2.weight"]),
        "num_res_blocks": len(levels[0]),
        "channel_mult": tuple(len(unet[f"{level[0]}.0.in_layers.2.weight"]) / width for level in levels),
        "use_scale_shift_norm": shifts,
        "resblock_updown": updown if len(levels) > 1 else None,
        "use_spatial_transformer": context is not None,
        "context_dim": context,
        "transformer_depth": depth,
        "num_classes": len(unet["label_emb.weight"]) if "label_emb.weight" in unet else None,
    }


def _attention(unet: Mapping[str, Tensor], side: int, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The levels with attention or spatial transformers, both of which have a norm."""
    levels = levels_of(unet)
    found = tuple(i for i, level in enumerate(levels) if f"{level[0]}.1.norm.weight" in unet)
    if (rates := values["attention_resolutions"]) is not None:
        at = levels_at(side, [side // int(rate) for rate in rates if side % int(rate) == 0], len(levels))
        check_attention("attention_resolutions", rates, found, at)
    return found


def _settings(sizes: Mapping[str, Any], attention: tuple[int, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keywords of the `ADM` that is the same network."""
    return {
        "channels": sizes["out_channels"],
        "width": sizes["model_channels"],
        "multipliers": sizes["channel_mult"],
        "blocks": sizes["num_res_blocks"],
        "attention": attention,
        "dropout": values["dropout"],
        "head_width": None if values["num_head_channels"] in (None, -1) else values["num_head_channels"],
        "heads": values["num_heads"] if values["num_heads"] not in (None, -1) else 1,
        "frequencies": "open_timesteps",
        "smallest_group": 1,
        "num_classes": sizes["num_classes"],
        "scale_shift": sizes["use_scale_shift_norm"],
        "resample_blocks": bool(sizes["resblock_updown"]),
        "context": sizes["context_dim"],
        "transformer_depth": sizes["transformer_depth"] or 1,
        "concat": sizes["in_channels"] - sizes["out_channels"],
    }


def _unlabelled(state: Mapping[str, Tensor], conditioner: partial[Any] | None, values: Mapping[str, Any]) -> bool:
    """Whether the model says something without conditioning: a class for none, or the empty caption."""
    if conditioner is None:
        return f"{UNET}label_emb.weight" not in state
    if conditioner.func is TextTransformer:
        return True
    table = state.get(conditioning.CLASSES)
    return table is not None and conditioning.has_unknown(len(table)) and values["n_classes"] is None


def entries(network: ADM | ConditionedNetwork) -> Iterator[Entry]:
    """What each tensor of the network, and of its conditioner if it has one, is made of."""
    if isinstance(network, ConditionedNetwork):
        for entry in conditioning.entries(network.conditioner):
            yield entry._replace(ours=f"conditioner.{entry.ours}")
        prefix, unet = "net.", network.net
    else:
        prefix, unet = "", network
    assert isinstance(unet, ADM)
    for entry in unet_entries(unet, new_order=False):
        yield Entry(prefix + entry.ours, tuple(UNET + name for name in entry.theirs), entry.make)


def _unet(state: Mapping[str, Tensor]) -> State:
    unet = {name.removeprefix(UNET): tensor for name, tensor in state.items() if name.startswith(UNET)}
    if "input_blocks.0.0.weight" not in unet or "time_embed.0.weight" not in unet:
        raise ValueError(
            f"expected a model of latent-diffusion with {UNET}input_blocks..., got {', '.join([*state][:3])} ..."
        )
    return unet


def _transformer(unet: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """The width of the context, and how many blocks each spatial transformer has; None without these."""
    blocks = "middle_block.1.transformer_blocks."
    depth = len({name.split(".")[3] for name in unet if name.startswith(blocks)})
    return (unet[f"{blocks}0.attn2.to_k.weight"].shape[1], depth) if depth else (None, None)


def _released(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is known of a released model, by its sizes."""
    unet = _unet(state)
    width = unet["time_embed.0.weight"].shape[1]
    multipliers = tuple(len(unet[f"{level[0]}.0.in_layers.2.weight"]) / width for level in levels_of(unet))
    return RELEASED.get((width, multipliers, _transformer(unet)[0]), {})


def _without_rival_heads(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """With one of their two keywords for heads said, the other is not that of a released model."""
    keys = ("num_heads", "num_head_channels")
    if any(architecture.get(key) is not None for key in keys):
        return {**dict.fromkeys(keys), **architecture}
    return dict(architecture)


def _path(state: Mapping[str, Tensor], values: Mapping[str, Any]) -> DiscreteVPSDE:
    """The path of the betas that a file has, named where a schedule gives them; else that of the keywords."""
    schedule = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}.get(values["beta_schedule"])
    if schedule is None:
        raise ValueError(f"expected beta_schedule to be linear, sqrt_linear or cosine, got {values['beta_schedule']!r}")
    betas = state.get("betas")
    if betas is None:
        return DiscreteVPSDE(schedule, values["timesteps"], values["linear_start"], values["linear_end"])
    # They are in single precision there.
    start, end = (float(f"{float(beta):.6g}") for beta in (betas[0], betas[-1]))
    for name in ("scaled_linear", "linear", "cosine"):
        named = DiscreteVPSDE(name, len(betas), start, end)
        if torch.allclose(torch.tensor(named.betas, dtype=torch.float64), betas.double(), rtol=1e-5, atol=0):
            return named
    return DiscreteVPSDE(tuple(betas.double().tolist()))


def _weights(state: State, spec: CheckpointSpec, averaged: bool) -> State | None:
    """The weights of the U-Net and of the conditioner, raw or averaged; None without averages.

    Their averages have the names of the U-Net's weights without dots; what they do not have is raw.
    """
    chosen = {name: tensor for name, tensor in state.items() if name.startswith(UNET)}
    if averaged:
        averages = {name: AVERAGE + name.removeprefix("model.").replace(".", "") for name in chosen}
        if not any(average in state for average in averages.values()):
            return None
        chosen = {name: state.get(averages[name], tensor) for name, tensor in chosen.items()}
    if spec.conditioner is not None:
        ours = {name for entry in conditioning.entries(spec.conditioner()) for name in entry.theirs}
        chosen |= {name: state[name] for name in ours if name in state}
    return chosen
