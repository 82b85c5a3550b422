"""Checkpoints: folders with checksums (`training.checkpoints.atomic`); training resumes from the newest valid one.

    FOLDER/0000001280/model.safetensors        the weights of the model in training, named as in `Model`
                      ema.safetensors          their moving average; of further decays, ema_1.safetensors, ...
                      power_0.05.safetensors   EDM2's averages, where they are followed
                      state.pt                 optimisers, random states of every rank, progress; weights_only=True
                      SHA256SUMS

A folder is named by the images seen. A damaged one is reported and passed over. One without SHA256SUMS, of an earlier
version or from elsewhere, is read unverified.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from scorefield.sde_lib.arguments import shown
from scorefield.training.averages.power_ema import PowerEMA
from scorefield.training.checkpoints import randomness
from scorefield.training.checkpoints.atomic import atomic_dir, has_checksums, remove, verify, write_tensors
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.model import names_in, names_of, tensors_of
from scorefield.training.state import TrainingState

VERSION = 3  # 1: no checksums; 2: a denoiser's own names of its weights


def save(
    folder: Path,
    state: TrainingState,
    keep: int = 2,
    *,
    keep_every: int = 0,
    power: PowerEMA | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of `state`; remove all but the newest `keep`, and one of every `keep_every` images.

    Every rank must call, for its random states; the first one writes. After an error the earlier checkpoints are there.

    Args:
        folder: of the checkpoints.
        state: to save.
        keep: the number of the newest checkpoints that stay.
        keep_every: the first checkpoint at or after each multiple of this number of images stays too; 0 for none.
        power: EDM2's averages, if they are followed.
        extra: numbers, strings, tensors, lists and dicts of them, which `load` returns.

    Raises:
        DiskFullError: if there is no room.
        ValueError: if a trained weight, or an average of one, is not a finite number.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 checkpoint, got {keep}")
    place = folder / f"{state.images:010d}"
    progress = _progress(state) | {"extra": extra or {}}
    if not Ranks.current().first:
        return place
    models = _models(state, power)
    _check_finite(models, state)
    with atomic_dir(place) as part:
        for name, model in models.items():
            write_tensors(part / f"{name}.safetensors", tensors_of(model))
        with (part / "state.pt").open("wb") as file:
            torch.save(progress, file)
    _thin_out(folder, keep, keep_every)
    return place


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, valid or not, or None."""
    return checkpoints[-1] if (checkpoints := _all(folder)) else None


def latest_valid(folder: Path, rename_damaged: bool = False) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match their checksums, or None if there is no checkpoint; and lines to print.

    Args:
        folder: of the checkpoints.
        rename_damaged: rename the newer, damaged ones, so that they do not count among the newest.

    Raises:
        ValueError: if there are checkpoints, and none is valid.
    """
    notes: list[str] = []
    damaged: list[Path] = []
    for checkpoint in reversed(_all(folder)):
        if (wrong := verify(checkpoint) or _incomplete(checkpoint)) is None:
            if not has_checksums(checkpoint):
                notes.append(f"{checkpoint} has no checksums, so it is read unverified")
            for bad in damaged if rename_damaged else []:
                _rename_damaged(bad)
            return checkpoint, notes
        damaged.append(checkpoint)
        notes.append(f"{wrong}: checkpoint {checkpoint.name} is passed over for the one before it")
    if notes:
        raise ValueError(f"no checkpoint in {folder} is valid, {notes[0].split(': ')[0]}: restore one, or train anew")
    return None, notes


def _incomplete(checkpoint: Path) -> str | None:
    """What a checkpoint without checksums lacks: weights, or the checksums that its version has."""
    if has_checksums(checkpoint):
        return None
    if not any((checkpoint / name).is_file() for name in ("model.safetensors", "ema.safetensors")):
        return f"{checkpoint} has no weights"
    if not (checkpoint / "state.pt").is_file():
        return None
    try:
        saved = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch, pickle and zipfile raise anything for a damaged file
        return f"{checkpoint / 'state.pt'} does not read ({type(error).__name__})"
    return f"{checkpoint} has lost its checksums" if saved.get("version", 1) >= 2 else None


def load(
    checkpoint: Path, state: TrainingState, power: PowerEMA | None = None, *, verified: bool = False
) -> dict[str, Any]:
    """Load a checkpoint's weights, averages, optimisers, random states and progress into `state`; returns its extra.

    Args:
        checkpoint: the folder.
        state: to fill.
        power: EDM2's averages, if they are followed.
        verified: whether `latest_valid` has just checked the checksums.

    Raises:
        ValueError: if it is missing, damaged, of another architecture, or of another device or number of processes.
    """
    if not verified and (wrong := verify(checkpoint)) is not None:
        raise ValueError(f"{wrong}: restore it, or remove {checkpoint}")
    for name, model in _models(state, power).items():
        load_weights(checkpoint, model, name)
    try:
        saved: dict[str, Any] = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
        if saved.get("version", 1) > 1 and not has_checksums(checkpoint):
            raise _UnfitError(f"{checkpoint / 'SHA256SUMS'} is missing: restore it, or remove {checkpoint}")
        _check_machine(checkpoint, saved, state)
        optimizers = _optimizers(saved)
        if len(optimizers) != len(state.optimizers):
            raise _UnfitError(
                f"{checkpoint} has {len(optimizers)} optimizers and this state {len(state.optimizers)}: use the same "
                "objectives"
            )
        for optimizer, own in zip(state.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(own)
        randomness.restore(_ranks(saved)[Ranks.current().rank], state.generator)
        state.ema.updates, state.step, state.images = saved["ema_updates"], saved["step"], saved["images"]
        if state.times and saved.get("times"):
            state.times.load_state_dict(saved["times"])
        extra: dict[str, Any] = saved.get("extra", {})
    except _UnfitError:
        raise
    except Exception as error:  # torch, pickle and zipfile raise anything for a damaged file
        raise ValueError(
            f"{checkpoint / 'state.pt'} does not read ({shown(error)}): restore it, or remove {checkpoint}"
        ) from None
    return extra


def load_weights(checkpoint: Path, module: nn.Module, ema: bool | str = True) -> None:
    """Load a checkpoint's averaged (or raw) weights tensor by tensor, without a check of the checksums.

    Args:
        checkpoint: the folder.
        module: to fill: a `Model`, or a denoiser, which takes the denoiser's weights alone.
        ema: the average or not; or a file by its name, as "ema_1".

    Raises:
        ValueError: if the file is missing, broken or of another architecture; the module is unchanged then.
    """
    name = ema if isinstance(ema, str) else "ema" if ema else "model"
    file = checkpoint / f"{name}.safetensors"
    ours, names = module.state_dict(), names_of(module)
    try:
        with safe_open(file, "pt") as opened, torch.no_grad():
            theirs = names_in(list(opened.keys()), module)
            shapes = {key: tuple(opened.get_slice(own).get_shape()) for key, own in theirs.items()}
            _check_shapes(file, shapes, {key: tuple(ours[own].shape) for key, own in names.items()})
            for key, own in names.items():
                ours[own].copy_(opened.get_tensor(theirs[key]))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"expected weights in {file}, and it does not read ({error}): train first, or restore it"
        ) from None


class _UnfitError(ValueError):
    """The file is in order, but does not fit."""


def _check_shapes(file: Path, theirs: dict[str, tuple[int, ...]], ours: dict[str, tuple[int, ...]]) -> None:
    odd = [name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)]
    if odd:
        name = min(odd)
        there, here = (shapes.get(name, "absent") for shapes in (theirs, ours))
        raise ValueError(
            f"{file} is of another architecture: {name} is {there} there and {here} here ({len(odd)} tensors differ): "
            "use the network of the run's own config.json"
        )


def _check_finite(models: dict[str, nn.Module], state: TrainingState) -> None:
    """Buffers and frozen weights may be infinite, as masks of attention are."""
    trained = [weight.requires_grad for weight in state.model.parameters()]
    for file, model in models.items():
        for (name, weight), checked in zip(model.named_parameters(), trained, strict=False):
            if checked and not bool(weight.isfinite().all()):
                raise ValueError(
                    f"expected finite weights, got NaN or infinity in {name} of {file} after {state.images} images, so "
                    "nothing was saved: lower the learning rate"
                )


def _check_machine(checkpoint: Path, saved: dict[str, Any], state: TrainingState) -> None:
    device, processes = saved["device"], len(_ranks(saved))
    if device != state.generator.device.type:
        raise _UnfitError(f"{checkpoint} was trained on {device}: resume it there, --device={device}")
    if processes != (here := Ranks.current().world):
        raise _UnfitError(
            f"{checkpoint} was trained by {processes} processes and this is {here}, so random states would differ: use "
            f"torchrun --nproc-per-node={processes}, or --fork_from"
        )


def _optimizers(saved: dict[str, Any]) -> list[dict[str, Any]]:
    return [saved["optimizer"], *saved.get("more_optimizers", [])]


def _ranks(saved: dict[str, Any]) -> list[dict[str, Any]]:
    if "ranks" in saved:
        ranks: list[dict[str, Any]] = saved["ranks"]
        return ranks
    return [{"generator": saved["generator"], "torch": saved["torch_rng"], "cuda": saved["cuda_rng"]}]


def _models(state: TrainingState, power: PowerEMA | None) -> dict[str, nn.Module]:
    averages = {f"ema_{i}" if i else "ema": model for i, model in enumerate(state.ema.models)}
    return {"model": state.model, **averages, **(power.named() if power else {})}


def _progress(state: TrainingState) -> dict[str, Any]:
    return {
        "version": VERSION,
        "optimizer": state.optimizer.state_dict(),
        "more_optimizers": [optimizer.state_dict() for optimizer in state.more_optimizers],
        "ranks": Ranks.current().all_gather_object(randomness.random_states(state.generator)),
        "device": state.generator.device.type,
        "ema_updates": state.ema.updates,
        "step": state.step,
        "images": state.images,  # the position in the data, too: see `Batches`
        "times": state.times.state_dict() if state.times else None,
    }


def _thin_out(folder: Path, keep: int, keep_every: int) -> None:
    checkpoints = _all(folder)
    kept, before = set(checkpoints[-keep:]), 0
    for checkpoint in checkpoints:
        if keep_every > 0 and int(checkpoint.name) // keep_every > before // keep_every:
            kept.add(checkpoint)
        before = int(checkpoint.name)
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove(checkpoint)


def _rename_damaged(checkpoint: Path) -> None:
    damaged = checkpoint.with_name(f"{checkpoint.name}.damaged")
    if damaged.exists():
        remove(damaged)
    checkpoint.rename(damaged)


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())
