"""Folders of diffusers: a pipeline (model_index.json, unet/, scheduler/), or a `UNet2DModel` alone."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.checkpoints.diffusers import native
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet, import_diffusers
from scorefield.models.checkpoints.files import State, read, weights_of
from scorefield.models.checkpoints.spec import CheckpointSpec, Entry, itself, with_overrides, with_unknown
from scorefield.models.networks.unet import UNet
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import SDE, VESDE, VPSDE, DiscreteVPSDE

# The keywords of UNet2DModel with what it takes them to be if they are left out.
UNET: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# Those of the schedulers that make a path, and which of them it is.
SCHEDULER: dict[str, Any] = {
    "scheduler": "DDPMScheduler",
    "num_train_timesteps": None,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "sampling_eps": None,
    "sigma_min": 0.01,
    "sigma_max": 1348.0,
}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
WEIGHTS = "diffusion_pytorch_model"


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a file of a `UNet2DModel`'s weights holds.

    Args:
        state: its state dict.
        architecture: as `spec_of_config` takes it.

    Raises:
        ValueError: for the weights of something else, and as `spec_of_config`.
    """
    if "conv_in.weight" not in state:
        raise ValueError(f"expected the weights of a UNet2DModel, got {', '.join([*state][:3])} ...")
    return spec_of_config(**architecture)


def spec_of_config(**architecture: Any) -> CheckpointSpec:
    """How to build a `UNet2DModel`.

    Args:
        architecture: its keywords (`UNET`), as its config.json has them, and those of its scheduler (`SCHEDULER`), of
            which `scheduler` is the class.

    Raises:
        ValueError: for a keyword that they do not have, a path that is not known, or an architecture that only
            diffusers builds where that is not installed.
    """
    given = {key: value for key, value in architecture.items() if not key.startswith("_")}
    values = with_overrides({**UNET, **SCHEDULER}, given)
    sde, precondition = path(values)
    config = {key: values[key] for key in UNET}
    shape = (config["in_channels"], *size_of(config))
    low = 0.0 if config["center_input_sample"] or isinstance(sde, VESDE) else -1.0
    only_there = native.obstacle(config)
    if only_there is None:
        named = partial(native.entries, cosines_first=config["flip_sin_to_cos"])
        unlabelled = config["num_class_embeds"] is None  # none of their classes is known to mean "no class"
        settings = native.settings(config)
        return CheckpointSpec(UNet, settings, named, precondition, sde, shape, low, unlabelled=unlabelled)
    import_diffusers(f"A UNet2DModel with {only_there}")
    return wrapped_unet("UNet2DModel", config, precondition, sde, shape, low)


def wrapped_unet(
    kind: str,
    config: Mapping[str, Any],
    precondition: TimeConditioned,
    sde: SDE,
    shape: tuple[int, ...],
    low: float = -1.0,
) -> CheckpointSpec:
    """How to build a U-Net through diffusers."""
    high = 1.0 if low > float("-inf") else float("inf")
    return CheckpointSpec(
        DiffusersUNet, {"kind": kind, **config}, wrapped, precondition, sde, shape, low, high,
        unlabelled=config.get("num_class_embeds") is None, extra=("time_proj.W",),
    )  # fmt: skip


def wrapped(network: nn.Module) -> Iterator[Entry]:
    """What each tensor of a wrapped module of diffusers is: the one with the same name."""
    for name in network.state_dict():
        theirs = name.split(".", 1)[1]
        make = with_unknown if theirs == "class_embedding.weight" else itself
        yield Entry(name, (native.either(theirs),), make)


def path(values: Mapping[str, Any]) -> tuple[SDE, TimeConditioned]:
    """The path of a scheduler, and the parameterisation of its network.

    Args:
        values: of `SCHEDULER`, and the network's `time_embedding_type`.

    Raises:
        ValueError: for betas or a prediction that are not known, or an embedding of other noise levels.
    """
    kind, predicts, embedding = values["scheduler"], values["prediction_type"], values["time_embedding_type"]
    if (embedding == "fourier") != (kind == "ScoreSdeVeScheduler"):
        raise ValueError(
            "expected ScoreSdeVeScheduler where time_embedding_type is fourier, and only there, got "
            f"scheduler={kind!r} and time_embedding_type={embedding!r}"
        )
    if kind == "ScoreSdeVeScheduler":
        ve = VESDE(values["sigma_min"], values["sigma_max"])
        return ve, TimeConditioned(ve, "score", "log_sigma")
    if kind == "ScoreSdeVpScheduler":
        vp = VPSDE(values["beta_min"], values["beta_max"], t_min=values["sampling_eps"] or 1e-3)
        return vp, TimeConditioned(vp, "eps", "time", 999.0)
    if predicts not in PREDICTS:
        raise ValueError(f"expected prediction_type to be one of {', '.join(PREDICTS)}, got {predicts!r}")
    if values["rescale_betas_zero_snr"]:
        raise ValueError(
            "expected rescale_betas_zero_snr=false, got true: a path that ends in noise alone has no alpha"
        )
    sde = _discrete(values)
    return sde, TimeConditioned(sde, PREDICTS[predicts], "time", float(sde.steps), -1.0)


def _discrete(values: Mapping[str, Any]) -> DiscreteVPSDE:
    steps, start, end = values["num_train_timesteps"] or 1000, values["beta_start"], values["beta_end"]
    schedule = values["beta_schedule"]
    if values["trained_betas"] is not None:
        return DiscreteVPSDE(tuple(values["trained_betas"]))
    if schedule == "sigmoid":
        rise = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        return DiscreteVPSDE(tuple((start + (end - start) * rise).tolist()))
    if schedule not in SCHEDULES:
        raise ValueError(f"expected beta_schedule to be one of {', '.join(SCHEDULES)}, sigmoid, got {schedule!r}")
    return DiscreteVPSDE(SCHEDULES[schedule], steps, start, end)


def scheduler_of(folder: Path) -> dict[str, Any] | None:
    """What a pipeline's folder says of its path, None if it has no scheduler.

    Raises:
        ValueError: for a scheduler without betas, or with its noise levels some other way.
    """
    files = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    kind, config = configuration(file)
    if "beta_schedule" not in config and kind not in ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler"):
        raise ValueError(f"expected a scheduler with beta_schedule in {file}, or of score SDEs, got {kind}")
    found = {key: value for key, value in config.items() if key in SCHEDULER and key != "scheduler"}
    if config.get("predict_epsilon") is False:  # what prediction_type was called before
        found["prediction_type"] = "sample"
    return {"scheduler": kind, **found}


def configuration(file: Path) -> tuple[str, dict[str, Any]]:
    """The class that a JSON file of diffusers is for, and its keywords.

    Raises:
        ValueError: if there is no such file, or it is no such JSON.
    """
    if not file.is_file():
        raise ValueError(f"expected a configuration of diffusers in {file}, and there is no such file")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} does not read as JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"expected a configuration of diffusers in {file}, with _class_name, got something else")
    return config["_class_name"], {key: value for key, value in config.items() if not key.startswith("_")}


def state_of(folder: Path) -> State:
    """The weights in a part's folder: safetensors rather than .bin, in one file or in several with an index.

    Raises:
        ValueError: if there are none, or a file does not read or would run code.
    """
    for ending in ("safetensors", "bin"):
        index = folder / f"{WEIGHTS}.{ending}.index.json"
        whole = [folder / f"{WEIGHTS}.{ending}", folder / f"{WEIGHTS}.fp16.{ending}"]
        files = [file for file in whole if file.is_file()][:1]
        if not files and index.is_file():
            files = _shards(index)
        if files:
            return {name: tensor for file in files for name, tensor in weights_of(read(file))[0].items()}
    raise ValueError(f"expected weights in {folder}, as {WEIGHTS}.safetensors or .bin, and there are none")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{index} does not read as an index of weights, with weight_map") from None
    # Names alone: an index may not point out of its folder.
    return [index.parent / Path(name).name for name in names]


def unet_folder(folder: Path, ema: bool) -> tuple[Path, str]:
    """Where the U-Net of a pipeline is, or of a folder that is a U-Net's alone, and which weights these are.

    Raises:
        ValueError: if there is none.
    """
    averaged, raw = folder / "unet_ema", folder / "unet"
    if averaged.is_dir() and (ema or not raw.is_dir()):
        return averaged, "ema"
    if raw.is_dir():
        return raw, "raw" if averaged.is_dir() else "as stored"
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected a folder of diffusers in {folder}, with unet/ or config.json, and there is none")
    return folder, "as stored"


def size_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width; where a configuration leaves them open, some that the network takes."""
    size = config["sample_size"] or max(32, 2 ** (len(config["block_out_channels"]) - 1))
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
