"""What a folder of diffusers holds: a model of the data itself, or of an autoencoder's codes."""

import dataclasses
from pathlib import Path
from typing import Any

from scorefield.models.checkpoints.autoencoders import load_autoencoder_checkpoint
from scorefield.models.checkpoints.autoencoders.diffusers import PARTS
from scorefield.models.checkpoints.diffusers import conditional
from scorefield.models.checkpoints.diffusers.importer import (
    SCHEDULER,
    UNET,
    configuration,
    scheduler_of,
    spec_of_config,
    state_of,
    unet_folder,
)
from scorefield.models.checkpoints.diffusers.modules import UNETS
from scorefield.models.checkpoints.files import State
from scorefield.models.checkpoints.spec import CheckpointSpec, FirstStage


def read_folder(
    folder: Path, ema: bool = True, both: bool = False, **architecture: Any
) -> tuple[CheckpointSpec, dict[str, State]]:
    """How to build what a folder holds, and its weights by their kind: the requested ones come last.

    Args:
        folder: a pipeline's, with its parts in folders or all in one, or a U-Net's. With an autoencoder beside it the
            model is one of that autoencoder's codes.
        ema: the averaged weights (unet_ema/), where the folder has both.
        both: also the raw weights.
        architecture: keywords of the U-Net's class or its scheduler that the folder does not have, or has wrongly.

    Raises:
        ValueError: for a folder that is none of these, or cut short, and a path or an architecture that is not known.
    """
    part, weights = unet_folder(folder, ema)
    kind, config = configuration(part / "config.json")
    if kind not in UNETS:
        raise ValueError(f"expected a {' or a '.join(UNETS)} in {part}, got {kind}")
    scheduler = scheduler_of(folder)
    if scheduler is None and not SCHEDULER.keys() & architecture.keys():
        weights += " (no scheduler there: DDPM's linear betas)"
    given = {**(scheduler or {}), **architecture}
    if kind == "UNet2DModel":
        known = {key: value for key, value in config.items() if key in UNET}
        spec = spec_of_config(**{**known, **given})
    else:
        spec = conditional.spec_of_config(config, **given)
    spec = dataclasses.replace(spec, first_stage=_first_stage(folder, spec.shape))
    has_both = (folder / "unet_ema").is_dir() and (folder / "unet").is_dir()
    raw = {"raw": state_of(folder / "unet")} if both and has_both else {}
    return spec, {**raw, weights: state_of(part)}


def _first_stage(folder: Path, codes: tuple[int, ...]) -> FirstStage | None:
    place = next((folder / name for name in PARTS if (folder / name).is_dir()), None)
    if place is None:
        return None
    opened = load_autoencoder_checkpoint(place, "diffusers")
    scale, shift = (1.0 if opened.scale is None else opened.scale), (0.0 if opened.shift is None else opened.shift)
    module, (_, height, width) = opened.module, codes
    return FirstStage(module, (module.channels, module.factor * height, module.factor * width), scale, shift)
