"""A denoiser and its path as a folder: weights that load without running code, and JSON that says what they are.

FOLDER/config.json          the classes of network, parameterisation and path, and the keywords of each
FOLDER/model.safetensors    the weights
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from scorefield import sde_lib
from scorefield.models import conditioners
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.models.checkpoints.files import State, save_weights, uncompiled, unwrapped
from scorefield.models.checkpoints.spec import CheckpointSpec, Entry, itself
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.denoiser import Denoiser
from scorefield.models.hyperparameters import settings_of
from scorefield.models.levels import Levels, Parameterisation
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.dit import DiT
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsn import NCSN
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.ncsnv2 import NCSNv2
from scorefield.models.networks.unet import UNet
from scorefield.models.networks.vdm import VDM
from scorefield.models.precondition import EDM, PREDICTS, TimeConditioned
from scorefield.sde_lib import SDE, DiscreteVPSDE, FrozenVP, LearnedVP
from scorefield.sde_lib.arguments import shown

Table = Mapping[str, Callable[..., Any]]

NETWORKS: Table = {
    network.__name__: network for network in (UNet, NCSN, NCSNv2, NCSNpp, ADM, VDM, DiT, MLP, DiffusersUNet)
}
CONDITIONERS: Table = {
    name: getattr(conditioners, name) for name in conditioners.__all__ if name not in ("READY", "Conditioner")
}
SDES: Table = {name: getattr(sde_lib, name) for name in sde_lib.__all__ if name.endswith("SDE") and name != "SDE"}
SDES = {**SDES, "FrozenVP": FrozenVP}
PRECONDITIONS: Table = {"EDM": EDM, "Levels": Levels, "TimeConditioned": TimeConditioned}
# What a damaged config.json raises on the way to a network.
UNREADABLE = (OSError, ArithmeticError, RuntimeError, MemoryError, ValueError, LookupError, TypeError, AttributeError)
# In folders that were written before the class and its keyword were renamed.
OLD_NAMES = {"Told": "TimeConditioned"}
OLD_KEYWORDS = {"whole": "integer_timesteps"}


def save_pretrained(
    denoiser: Denoiser,
    sde: SDE,
    folder: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    levels: int | None = 256,
    low: float = -1.0,
    high: float = 1.0,
    class_names: Sequence[str] = (),
    class_counts: Sequence[int] = (),
) -> Path:
    """Write a denoiser and the path it was trained on; returns the folder.

    A network of your own needs `@save_hyperparameters`, and a path of your own must be a dataclass. They are written by
    their dotted names, and `from_pretrained` needs them in `classes`.

    Args:
        denoiser: its network and parameterisation.
        sde: its path.
        folder: made if it is not there.
        shape: of one sample, (*D), for whoever loads it.
        levels: how many values the data has, None if it is continuous.
        low: what the smallest value of the data is for the network.
        high: what the largest value is.
        class_names: of the classes in their order, if they have names.
        class_counts: training examples of each class, where they were counted.

    Raises:
        ValueError: for a network, parameterisation or path that cannot be written down.
    """
    folder, complete = Path(folder), unwrapped(denoiser.net)
    network = complete.net if isinstance(complete, ConditionedNetwork) else complete
    if not isinstance(network, nn.Module) or (type(network) not in NETWORKS.values() and not _settings(network)):
        raise ValueError(
            f"expected one of our networks ({', '.join(NETWORKS)}), got {type(network).__name__}: put "
            "@save_hyperparameters (models.hyperparameters) above a class of your own"
        )
    described = {
        "format": "scorefield",
        "network": {"class": _name(type(network), NETWORKS), **settings_of(network)},
        "precondition": _describe_precondition(denoiser.precondition),
        "sde": _describe(sde.frozen() if isinstance(sde, LearnedVP) else sde, SDES),
        "data": {
            "shape": shape,
            "levels": levels,
            "low": str(low),  # JSON has no infinity
            "high": str(high),
            "class_names": list(class_names),
            "class_counts": list(class_counts),
        },
        "label_required": denoiser.label_required,
    }
    if isinstance(complete, ConditionedNetwork):
        conditioner = complete.conditioner
        named = {"class": _name(type(conditioner), CONDITIONERS), **settings_of(conditioner)}
        described |= {"conditioner": named, "conditioning_required": complete.required}
    try:
        text = json.dumps(described, indent=2) + "\n"
    except TypeError as error:
        raise ValueError(f"expected settings that JSON can hold, got {error}: use numbers, words and lists") from None
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in uncompiled(complete.state_dict()).items()}
    (folder / "config.json").write_text(text)
    save_weights(weights, folder / "model.safetensors", folder / "config.json")
    return folder


def from_pretrained(folder: str | Path, *, classes: Iterable[type] = ()) -> tuple[Denoiser, SDE]:
    """The denoiser, in evaluation mode, and the path that `save_pretrained` wrote.

    Args:
        folder: what it wrote.
        classes: networks and paths of your own that it may name: a folder never decides what code runs.

    Raises:
        ValueError: if the folder does not hold them, names another class, or its weights are of another network.
    """
    denoiser, sde, _ = _load(Path(folder), classes)
    return denoiser, sde


def read_folder(
    folder: Path, ema: bool = True, both: bool = False, **architecture: Any
) -> tuple[CheckpointSpec, dict[str, State]]:
    """How to build what a folder holds, and its weights, of which there is one kind, whatever `ema` and `both` say.

    Raises:
        ValueError: as `from_pretrained`, or for an architecture, or if the folder does not say the shape of a sample.
    """
    if architecture:
        given = ", ".join(architecture)
        raise ValueError(f"expected no architecture of our own folders, which say all, got {given}: leave it out")
    denoiser, sde, data = _load(folder, ())
    assert isinstance(denoiser.net, nn.Module)
    network, state, conditioner = denoiser.net, dict(denoiser.net.state_dict()), None
    if isinstance(network, ConditionedNetwork):
        conditioner = functools.partial(type(network.conditioner), **settings_of(network.conditioner))
        network = network.net
    if data["shape"] is None:
        raise ValueError(f"{folder / 'config.json'} does not say the shape of a sample: save it with shape=")
    entries = [Entry(name, (name,), itself) for name in state]
    spec = CheckpointSpec(
        type(network),
        settings_of(network),
        lambda _: iter(entries),
        denoiser.precondition,
        sde,
        shape=data["shape"],
        low=data["low"],
        high=data["high"],
        levels=data["levels"],
        unlabelled=not (denoiser.label_required or getattr(denoiser.net, "required", False)),
        class_names=data["class_names"],
        class_counts=data["class_counts"],
        conditioner=conditioner,
    )
    return spec, {"as stored": state}


def _load(folder: Path, classes: Iterable[type]) -> tuple[Denoiser, SDE, dict[str, Any]]:
    """The denoiser, its path, and what the folder says of the data: its shape, levels, low and high."""
    config, file = folder / "config.json", folder / "model.safetensors"
    own = {_name(cls, {}): cls for cls in classes}
    networks: Table = {**NETWORKS, **own}
    sdes: Table = {**SDES, **own}
    try:
        described = json.loads(config.read_text())
        if described.get("format") != "scorefield":
            raise ValueError("its format is another")
        network: nn.Module = _make(described["network"], networks)
        if "conditioner" in described:
            conditioner = _make(described["conditioner"], {**CONDITIONERS, **own})
            network = ConditionedNetwork(network, conditioner, required=bool(described["conditioning_required"]))
        sde: SDE = _make(described["sde"], sdes)
        precondition = _make_precondition(described["precondition"], sdes)
        data = dict(described["data"])
        data |= {"shape": _shape(data["shape"]), "low": float(data["low"]), "high": float(data["high"])}
        data["class_names"] = tuple(map(str, data.get("class_names", ())))  # older folders have none
        data["class_counts"] = tuple(map(int, data.get("class_counts", ())))
        if not data["low"] < data["high"]:
            raise ValueError(f"low {data['low']} is not below high {data['high']}")
    except UNREADABLE as error:
        raise ValueError(
            f"expected a folder written by save_pretrained, and {config} does not read ({error})"
        ) from None
    try:
        network.load_state_dict(uncompiled(load_file(file)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{file} does not hold the weights that {config} describes: {shown(error)}") from None
    required = bool(described.get("label_required", False))  # older folders do not say
    return Denoiser(network, precondition, label_required=required).eval(), sde, data


def _shape(sizes: Any) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"expected a shape of positive numbers, got {sizes!r}")
    return tuple(sizes)


def _settings(network: nn.Module) -> bool:
    return getattr(network, "settings", None) is not None


def _name(cls: type, table: Table) -> str:
    """The name of a class of ours, or the dotted name of another."""
    return cls.__name__ if table.get(cls.__name__) is cls else f"{cls.__module__}.{cls.__qualname__}"


def _describe_precondition(precondition: Parameterisation) -> dict[str, Any]:
    for name, function in PREDICTS.items():
        if precondition is function:
            return {"class": name}
    if not isinstance(precondition, EDM | Levels | TimeConditioned):
        raise ValueError(
            f"expected a parameterisation of models.precondition, got {shown(precondition)}: use TimeConditioned or edm"
        )
    described = _describe(precondition, PRECONDITIONS)
    if isinstance(precondition, TimeConditioned):
        described["sde"] = _describe(precondition.sde, SDES)
    return described


def _make_precondition(described: Mapping[str, Any], sdes: Table) -> Parameterisation:
    name = OLD_NAMES.get(described["class"], described["class"])
    if name in PREDICTS:
        return PREDICTS[name]
    described = {OLD_KEYWORDS.get(key, key): value for key, value in described.items()} | {"class": name}
    if "sde" in described:
        described["sde"] = _make(described["sde"], sdes)
    made: Parameterisation = _make(described, PRECONDITIONS)
    return made


def _describe(value: Any, table: Table) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        raise ValueError(f"expected one of {', '.join(table)}, or a dataclass, got {type(value).__name__}")
    keywords = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, DiscreteVPSDE):
        keywords["betas"] = value.named
    return {"class": _name(type(value), table), **keywords}


def _tuples(value: Any) -> Any:
    """Lists, of lists too, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _make(described: Mapping[str, Any], table: Table) -> Any:
    name = str(described["class"])
    keywords = {key: _tuples(v) for key, v in described.items() if key != "class"}
    if name not in table:
        hint = f": if you trust it, give classes=[{name.rsplit('.', 1)[-1]}]" if "." in name else ""
        raise ValueError(f"expected one of {', '.join(table)}, got {name!r}{hint}")
    return table[name](**keywords)
