"""Files of weights: other people's are read without running what may be in them."""

import pickle
import pickletools
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scorefield.models.checkpoints import tensors_only

State = dict[str, Tensor]
# The random frequencies of score_sde_pytorch, which are not trained and so not averaged.
FOURIER = "all_modules.0.W"
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# What a damaged pickle may come upon.
MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError)


def read(path: Path, *, skip_objects: bool = False) -> Any:
    """What a checkpoint holds: tensors, numbers, and lists and dicts of them.

    Args:
        path: the file.
        skip_objects: objects of other classes, which a file of Lightning has, are skipped rather than refused. Nothing
            of theirs is imported or run.

    Raises:
        ValueError: if there is no such file, it is cut short, or loading it would run code.
    """
    if not path.is_file():
        raise ValueError(f"expected a checkpoint in {path}, and there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that are then refused in our own words
            if skip_objects and not _is_script(path):
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=tensors_only)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = _first_global(path, str(error))
        if name is None:
            raise ValueError(f"{path} does not read as a checkpoint: it is cut short, or something else") from None
        raise ValueError(
            f"{path} is a pickle that would run code when loaded ({name}), and is refused: where its own code is "
            "installed and trusted, write its tensors with torch.save(model.state_dict(), FILE) and import that"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, *MALFORMED) as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(f"{path} does not read ({first}): it is cut short, or not a checkpoint") from None


def _is_script(path: Path) -> bool:
    """Whether a file holds a TorchScript program, which loading would start."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def _first_global(path: Path, refusal: str) -> str | None:
    """The first thing that a refused pickle would call, or None if it is no pickle."""
    if found := re.search(r"GLOBAL (\S+)", refusal):
        return found[1]
    words: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, word, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return str(word).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(words[-2:])
                words += [word] if isinstance(word, str) else []
    except (ValueError, OSError, EOFError, IndexError):
        return None
    return None


def weights_of(saved: Any, ema: bool = True) -> tuple[State, str]:
    """The state dict within a checkpoint, averaged or raw, and which of the two it is ("as stored": it does not say).

    Understood are state dicts; {"model", "ema"} with the average as a state dict, or as a list of parameters
    (score_sde_pytorch); and lists that begin with a state dict and may end with its average (ncsnv2, ddim). A prefix
    "module." or "_orig_mod." is taken off every name, and off its parts.

    Raises:
        ValueError: if none of these is there.
    """
    if isinstance(saved, list | tuple) and saved and _is_state(saved[0]):
        raw, average = saved[0], saved[-1] if len(saved) > 1 and _is_state(saved[-1]) else None
        return _chosen(without_wrappers(raw), None if average is None else without_wrappers(average), ema)
    if _is_state(saved):
        return without_wrappers(saved), "as stored"
    if isinstance(saved, Mapping):
        raw = next(
            (saved[k] for k in ("model", "state_dict", "net", "model_state_dict") if _is_state(saved.get(k))), None
        )
        average = saved.get("ema", saved.get("ema_state_dict", saved.get("model_ema")))
        use_average = ema and average is not None
        if isinstance(average, Mapping) and _is_state(average.get("shadow")):
            average = average["shadow"]
        if isinstance(average, Mapping) and isinstance(average.get("shadow_params"), list) and raw is not None:
            average = _named(without_wrappers(raw), average["shadow_params"])
        average = without_wrappers(average) if _is_state(average) else None
        if use_average and average is None:
            raise ValueError(
                "the checkpoint has an average of a form that is not known: take the raw weights (ema=False)"
            )
        if raw is not None or average is not None:
            return _chosen(None if raw is None else without_wrappers(raw), average, ema)
    raise ValueError(
        "expected a state dict, or a checkpoint with one under model, state_dict, net or ema, got "
        + (
            f"a mapping of {', '.join(map(str, list(saved)[:8]))}"
            if isinstance(saved, Mapping)
            else type(saved).__name__
        )
    )


def lightning_state(saved: Any) -> State:
    """The tensors of a file of Lightning, or of a state dict; numbers and skipped objects may stand between them.

    Raises:
        ValueError: if there are none.
    """
    kept = saved.get("state_dict", saved) if isinstance(saved, Mapping) else saved
    if isinstance(kept, Mapping):
        kept = {str(name): tensor for name, tensor in kept.items() if isinstance(tensor, Tensor)}
    return weights_of(kept or saved)[0]


def _chosen(raw: State | None, average: State | None, ema: bool) -> tuple[State, str]:
    if raw is None:
        assert average is not None
        return average, "ema"
    # An average may leave out what is not trained.
    return ({**raw, **average}, "ema") if ema and average is not None else (raw, "raw")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, Tensor) for v in value.values())


def unwrapped(network: Any) -> Any:
    """The network within torch.compile and DistributedDataParallel."""
    while isinstance(network, WRAPPERS) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(network, WRAPPERS) else network._orig_mod
    return network


def uncompiled(state: Mapping[str, Tensor]) -> State:
    """A state dict by the names that it has without torch.compile."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def without_wrappers(state: Mapping[str, Tensor]) -> State:
    """A state dict without the names that torch.compile and DataParallel put around the network or its parts."""
    return {re.sub(r"(^|(?<=\.))((module|_orig_mod)\.)+", "", str(name)): tensor for name, tensor in state.items()}


def save_weights(state: State, file: Path, config: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict with the rights of the config.json beside it; safetensors' own are for the user alone."""
    save_file(state, file, metadata=metadata)
    shutil.copymode(config, file)


def _named(state: State, parameters: list[Tensor]) -> State:
    """An average kept as a list of the trained parameters, by their names."""
    trained = [name for name, tensor in state.items() if name != "sigmas" and name != FOURIER]
    if [state[name].shape for name in trained] != [tensor.shape for tensor in parameters]:
        raise ValueError(
            f"expected the average of {len(trained)} parameters in the order of the model's own, got {len(parameters)} "
            "of other shapes: take the raw weights (ema=False, --noema)"
        )
    return dict(zip(trained, parameters, strict=True))
