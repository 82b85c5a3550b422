"""A denoiser and its path as a folder: weights that load without running code, and JSON that says what they are.

FOLDER/config.json          the classes of network, parameterisation and path, and the keywords of each
model.safetensors    the weights
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from scorefield import sde_lib
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.models.denoiser import Denoiser
from scorefield.models.hyperparameters import settings_of
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.dit import DiT
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsn import NCSN
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.ncsnv2 import NCSNv2
from scorefield.models.networks.unet import UNet
from scorefield.models.networks.vdm import VDM
from scorefield.models.precondition import EDM, PREDICTS, Precondition, TimeConditioned
from scorefield.sde_lib import SDE, DiscreteVPSDE

Table = Mapping[str, Callable[..., Any]]

_CLASSES = (UNet, NCSN, NCSNv2, NCSNpp, ADM, VDM, DiT, MLP, DiffusersUNet)
NETWORKS: Table = {network.__name__: network for network in _CLASSES}
SDES: Table = {name: getattr(sde_lib, name) for name in sde_lib.__all__ if name.endswith("SDE") and name != "SDE"}


def save_pretrained(
    denoiser: Denoiser,
    sde: SDE,
    folder: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    levels: int | None = 256,
    low: float = -1.0,
    high: float = 1.0,
) -> Path:
    """Write a denoiser and the path it was trained on; returns the folder.

    Args:
        denoiser: of one of our networks.
        sde: its path.
        folder: made if it is not there.
        shape: of one sample, (*D), for whoever loads it.
        levels: how many values the data has, None if it is continuous.
        low: of the data, what its smallest values are for the network.
        high: the same of its largest.

    Raises:
        ValueError: for a network, parameterisation or path that cannot be written down.
    """
    folder = Path(folder)
    network = denoiser.net
    if not isinstance(network, nn.Module) or type(network).__name__ not in NETWORKS:
        raise ValueError(f"expected one of our networks ({', '.join(NETWORKS)}), got {type(network).__name__}")
    described = {
        "format": "scorefield",
        "network": {"class": type(network).__name__, **settings_of(network)},
        "precondition": _precondition(denoiser.precondition),
        "sde": _written(sde, SDES),
        "data": {"shape": shape, "levels": levels, "low": str(low), "high": str(high)},  # JSON has no infinity
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    return folder


def from_pretrained(folder: str | Path) -> tuple[Denoiser, SDE]:
    """The denoiser, in evaluation mode, and the path that `save_pretrained` wrote.

    Raises:
        ValueError: if the folder does not hold them, or its weights are of another network.
    """
    denoiser, sde, _ = with_data(Path(folder))
    return denoiser, sde


def with_data(folder: Path) -> tuple[Denoiser, SDE, dict[str, Any]]:
    """The same, and what was said of the data: its shape, low and high."""
    config, file = folder / "config.json", folder / "model.safetensors"
    try:
        described = json.loads(config.read_text())
        if described.get("format") != "scorefield":
            raise ValueError("its format is another")
        network: nn.Module = _made(described["network"], NETWORKS)
        sde: SDE = _made(described["sde"], SDES)
        precondition = _parameterisation(described["precondition"])
        data = dict(described["data"])
        data |= {"shape": _shape(data["shape"]), "low": float(data["low"]), "high": float(data["high"])}
        if not data["low"] < data["high"]:
            raise ValueError(f"low {data['low']} is not below high {data['high']}")
    except (
        OSError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"expected a folder written by save_pretrained, and {config} does not read ({error})"
        ) from None
    try:
        network.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not hold the weights that {config} describes: {reason}") from None
    return Denoiser(network, precondition).eval(), sde, data


def _shape(sizes: Any) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"expected a shape of positive numbers, got {sizes!r}")
    return tuple(sizes)


def _precondition(precondition: Precondition) -> dict[str, Any]:
    for name, function in PREDICTS.items():
        if precondition is function:
            return {"class": name}
    if isinstance(precondition, EDM):
        return _written(precondition, {"EDM": EDM})
    if isinstance(precondition, TimeConditioned):
        return {**_written(precondition, {"Told": TimeConditioned}), "sde": _written(precondition.sde, SDES)}
    raise ValueError(f"expected a parameterisation of models.precondition, got {precondition}: use Told, or edm()")


def _parameterisation(described: Mapping[str, Any]) -> Precondition:
    if described["class"] in PREDICTS:
        return PREDICTS[described["class"]]
    if described["class"] == "Told":
        described = {**described, "sde": _made(described["sde"], SDES)}
    made: Precondition = _made(described, {"Told": TimeConditioned, "EDM": EDM})
    return made


def _written(value: Any, table: Table) -> dict[str, Any]:
    name = type(value).__name__
    if name not in table:
        raise ValueError(f"expected one of {', '.join(table)}, got {name}: only these can be written down")
    keywords = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, DiscreteVPSDE):
        keywords["betas"] = value.named
    return {"class": name, **keywords}


def _made(described: Mapping[str, Any], table: Table) -> Any:
    name = str(described["class"])
    keywords = {key: tuple(v) if isinstance(v, list) else v for key, v in described.items() if key != "class"}
    if name not in table:
        raise ValueError(f"expected one of {', '.join(table)}, got {name!r}")
    return table[name](**keywords)
