"""Our networks in other people's formats."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scorefield.models.checkpoints.diffusers import native
from scorefield.models.checkpoints.diffusers.importer import PREDICTS, SCHEDULES, WEIGHTS
from scorefield.models.checkpoints.files import save_weights, unwrapped
from scorefield.models.denoiser import Denoiser
from scorefield.models.layers.attention import Attention
from scorefield.models.networks.unet import UNet
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import SDE, DiscreteVPSDE

# Whose `from_pretrained` this is written for; files must name a version.
VERSION = "0.32.0"


def to_diffusers(
    model: nn.Module, folder: str | Path, sde: SDE | None = None, *, size: int | tuple[int, int] | None = None
) -> Path:
    """Write a `UNet`, or a denoiser of one, as diffusers' `UNet2DModel`; returns the folder.

    With a path it is a folder of a `DDPMPipeline`: model_index.json, unet/ and scheduler/. Without one it is that of a
    `UNet2DModel`. "No label" becomes the last class, unless the denoiser was always given one.

    Args:
        model: the network, or its denoiser on a path of timesteps, which then gives the path where it is not given.
        folder: made if it is not there.
        sde: the path that it was trained on, a `DiscreteVPSDE`.
        size: of the images, a side or a height and width: without it a pipeline cannot sample.

    Raises:
        ValueError: for an architecture, parameterisation or path that diffusers does not have.
    """
    network = unwrapped(model.net if isinstance(model, Denoiser) else model)
    if not isinstance(network, UNet):
        raise ValueError(f"expected a UNet, or a Denoiser of one, got {type(network).__name__}: diffusers has no such")
    predicts = "eps"
    if isinstance(model, Denoiser):
        predicts, sde = _predicts(model.precondition, sde)
    config, state = {**_config(network), "sample_size": size}, _state(network)
    if isinstance(model, Denoiser) and model.label_required:
        config["num_class_embeds"] -= 1
        state["class_embedding.weight"] = state["class_embedding.weight"][:-1].clone()
    scheduler = None if sde is None else _scheduler(sde, predicts)
    folder = Path(folder)
    part = folder if scheduler is None else folder / "unet"
    _write(part / "config.json", config)
    save_weights(state, part / f"{WEIGHTS}.safetensors", part / "config.json", {"format": "pt"})
    if scheduler is not None:
        _write(folder / "scheduler" / "scheduler_config.json", scheduler)
        parts = {name: ["diffusers", kind] for name, kind in (("scheduler", "DDPMScheduler"), ("unet", "UNet2DModel"))}
        _write(folder / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION, **parts})
    return folder


def _predicts(precondition: Any, sde: SDE | None) -> tuple[str, SDE]:
    """What a network conditioned on timesteps predicts, and its path."""
    timesteps = isinstance(precondition, TimeConditioned) and isinstance(precondition.sde, DiscreteVPSDE)
    if not timesteps or precondition.predicts not in PREDICTS.values():
        raise ValueError(
            f"expected TimeConditioned(DiscreteVPSDE(...), {' or '.join(PREDICTS.values())}, scale=T, shift=-1), got "
            f"{getattr(precondition, '__name__', precondition)}: diffusers' U-Nets take timesteps and nothing else"
        )
    path = precondition.sde
    if (precondition.unit, precondition.scale, precondition.shift) != ("time", path.steps, -1):
        raise ValueError(f"expected TimeConditioned(unit='time', scale={path.steps}, shift=-1), got {precondition}")
    if sde is not None and not (isinstance(sde, DiscreteVPSDE) and _close(sde, path)):
        raise ValueError("expected the path of the denoiser's timesteps, got another: leave sde out")
    return precondition.predicts, path


def _config(network: UNet) -> dict[str, Any]:
    ours: Any = network.settings
    widths = [round(ours["width"] * m) for m in ours["multipliers"]]
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    heads = _head_widths(network)
    frequencies = {name: shift for shift, name in native.FREQUENCIES.items()}
    for wrong, what, fix in (
        (ours["frequencies"] not in frequencies, f"frequencies={ours['frequencies']!r}", "timesteps or open_timesteps"),
        (len(ours["fourier"]) > 0, f"fourier={tuple(ours['fourier'])}", "none"),
        (len(ours["attention"]) > 0 and ours["attention_up"] != "each", "attention_up='last'", "each"),
        (not ours["resample_conv"], "resample_conv=False", "True"),
        (ours["variances"], "variances=True", "the prediction alone"),
        (widths[0] != ours["width"], f"multipliers={tuple(ours['multipliers'])}", "1 first"),
        (len(groups) > 1, f"normalisations in {sorted(groups)} groups", "one number, as with smallest_group=1"),
        (len(heads) > 1, f"heads of {sorted(heads)} channels", "one head_width"),
        (ours["scale_shift"] < (not ours["middle_norm"]), "middle_norm=False", "it with scale_shift alone"),
    ):
        if wrong:
            raise ValueError(f"diffusers' UNet2DModel has no {what}: it has {fix}")
    kinds = ["Attn" if level in ours["attention"] else "" for level in range(len(widths))]
    explicit = ours["scale_shift"] and ours["middle_norm"]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "in_channels": network.channels,
        "out_channels": network.channels,
        "center_input_sample": network.unit_range,
        "freq_shift": frequencies[ours["frequencies"]],
        "flip_sin_to_cos": False,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": ours["blocks"],
        "downsample_padding": int(ours["symmetric_padding"]),
        "dropout": ours["dropout"],
        "attention_head_dim": next(iter(heads), None),
        "norm_num_groups": next(iter(groups)),
        "attn_norm_num_groups": next(iter(groups)) if explicit else None,
        "norm_eps": ours["eps"],
        "resnet_time_scale_shift": "scale_shift" if ours["scale_shift"] else "default",
        "add_attention": ours["middle_attention"],
        "num_class_embeds": None if ours["num_classes"] is None else ours["num_classes"] + 1,
    }


def _head_widths(network: UNet) -> set[int]:
    """Channels of the heads; none where every attention has one head of whatever width."""
    found = [module for module in network.modules() if isinstance(module, Attention)]
    several = any(attention.heads > 1 for attention in found)
    return {attention.project.out_channels // attention.heads for attention in found} if several else set()


def _state(network: UNet) -> dict[str, Tensor]:
    """The importer's names, the other way round."""
    ours, theirs = network.state_dict(), {}
    for entry in native.entries(network):
        names = [name.split("|")[0] for name in entry.theirs]
        for name, tensor in zip(names, ours[entry.ours].chunk(len(names)), strict=True):
            flat = tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
            theirs[name] = flat.detach().cpu().contiguous()
    return theirs


def _scheduler(sde: SDE, predicts: str) -> dict[str, Any]:
    if not isinstance(sde, DiscreteVPSDE):
        raise ValueError(f"expected a DiscreteVPSDE, got {type(sde).__name__}: leave sde out, or give its own path")
    betas = _betas(sde)
    start, end = betas[0], betas[-1]
    named = {theirs: DiscreteVPSDE(ours, sde.steps, start, end) for theirs, ours in SCHEDULES.items()}
    schedule = next((name for name, found in named.items() if _close(found, sde)), None)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": sde.steps,
        "beta_schedule": schedule or "linear",
        "beta_start": start,
        "beta_end": end,
        "trained_betas": betas if schedule is None else None,
        "prediction_type": next(name for name, ours in PREDICTS.items() if ours == predicts),
        "clip_sample": False,
    }


def _close(one: DiscreteVPSDE, other: DiscreteVPSDE) -> bool:
    """Whether the betas are the same but for rounding."""
    pairs = zip(_betas(one), _betas(other), strict=False)
    return one.steps == other.steps and all(math.isclose(a, b, rel_tol=1e-9) for a, b in pairs)


def _betas(sde: DiscreteVPSDE) -> list[float]:
    return [float(beta) for beta in sde.betas]


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
