"""Checkpoints: folders that appear whole or not at all.

    FOLDER/0000001280/model.safetensors    the weights in training
                      ema.safetensors      their moving average
                      state.pt             optimiser, random states, progress; loads with weights_only=True

A folder is named by the images seen, written beside its place under another name, and renamed.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from training.loop import TrainingState


def save(folder: Path, state: TrainingState, keep: int = 2) -> Path:
    """Write a checkpoint of `state`, and remove all but the newest `keep`.

    Raises:
        ValueError: if a weight is not a finite number: what was saved before stays.
    """
    for name, weight in state.denoiser.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise ValueError(
                f"{name} is not finite after {state.images} images, so nothing was saved: lower the learning rate"
            )
    place = folder / f"{state.images:010d}"
    part = folder / f".{place.name}.part"
    aside = folder / f".{place.name}.old"
    for left in (part, aside):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_file(_contiguous(state.denoiser), part / "model.safetensors")
        save_file(_contiguous(state.ema.model), part / "ema.safetensors")
        torch.save(_progress(state), part / "state.pt")
        for file in part.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if place.exists():
            place.rename(aside)
        part.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, or None."""
    return checkpoints[-1] if (checkpoints := _all(folder)) else None


def load(checkpoint: Path, state: TrainingState) -> None:
    """Put a checkpoint's weights, optimiser, random states and progress into `state`.

    Raises:
        ValueError: if it is missing, broken or of another architecture.
    """
    load_weights(checkpoint, state.denoiser, ema=False)
    load_weights(checkpoint, state.ema.model, ema=True)
    try:
        saved: dict[str, Any] = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
        device = saved["device"]
        if device != state.generator.device.type:
            raise _AnotherDevice(f"{checkpoint} was trained on {device}: go on with it there, --device={device}")
        state.optimizer.load_state_dict(saved["optimizer"])
        state.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_rng"])
        if device == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"], state.generator.device)
        state.ema.updates, state.step, state.images = saved["ema_updates"], saved["step"], saved["images"]
    except _AnotherDevice:
        raise
    except Exception as error:  # torch, pickle and zipfile raise anything for a damaged file
        raise ValueError(
            f"{checkpoint / 'state.pt'} does not read ({error!r}): restore it, or remove {checkpoint}"
        ) from None


class _AnotherDevice(ValueError):  # noqa: N818 - not a fault of the file
    """Random states of one kind of device mean nothing to another."""


def load_weights(checkpoint: Path, denoiser: nn.Module, ema: bool = True) -> None:
    """Put a checkpoint's averaged (or raw) weights into a denoiser.

    Raises:
        ValueError: if the file is missing, broken or of another architecture.
    """
    file = checkpoint / ("ema.safetensors" if ema else "model.safetensors")
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"expected weights in {file}, and it does not read ({error}): train first, or restore it"
        ) from None
    ours = denoiser.state_dict()
    odd = [
        k
        for k in ours.keys() | weights.keys()
        if k not in ours or k not in weights or ours[k].shape != weights[k].shape
    ]
    if odd:
        name = min(odd)
        there, here = (tuple(w[name].shape) if name in w else "absent" for w in (weights, ours))
        raise ValueError(
            f"{file} is of another architecture: {name} is {there} there and {here} here ({len(odd)} tensors differ): "
            "use the network of the run's own config.json"
        )
    denoiser.load_state_dict(weights)


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _contiguous(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}


def _progress(state: TrainingState) -> dict[str, Any]:
    return {
        "optimizer": state.optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "device": state.generator.device.type,
        "cuda_rng": torch.cuda.get_rng_state(state.generator.device) if state.generator.device.type == "cuda" else None,
        "ema_updates": state.ema.updates,
        "step": state.step,
        "images": state.images,
    }
