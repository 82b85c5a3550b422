"""From a configuration to its objects, and from objects back to their specs. The names are in `configs.tables`."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import ml_collections
from torch import nn

from scorefield import models, sde_lib
from scorefield.configs.specs import Table, build, find, modern, name_of, spec, unparse
from scorefield.configs.tables import (
    AUTOENCODER_PARTS,
    AUTOENCODERS,
    CONDITIONERS,
    DATASETS,
    DEQUANTISATIONS,
    DIVERGENCES,
    GRIDS,
    METHODS,
    NETWORKS,
    OPTIONAL,
    PARTS,
    PERCEPTUAL,
    PRECONDITIONS,
    QUANTISERS,
    SDES,
    SOLVERS,
    TABLES,
    TASKS,
    TIMES,
    WEIGHTINGS,
)  # fmt: skip
from scorefield.configs.text import parse
from scorefield.models import conditioners, precondition
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.hyperparameters import settings_of
from scorefield.models.levels import Levels, Parameterisation
from scorefield.models.networks.autoencoder import ImageAutoencoder

__all__ = [
    "AUTOENCODERS", "CONDITIONERS", "DATASETS", "DEQUANTISATIONS", "DIVERGENCES", "GRIDS", "METHODS", "NETWORKS",
    "OPTIONAL", "PARTS", "PERCEPTUAL", "PRECONDITIONS", "QUANTISERS", "SDES", "SOLVERS", "TABLES", "TASKS", "TIMES",
    "WEIGHTINGS", "Table", "autoencoder", "autoencoder_spec", "build", "conditioning_keywords", "denoiser",
    "is_autoencoder", "label_required", "modern", "modern_config", "name_of", "network", "parse", "parts_of",
    "precondition_spec", "sde_spec", "spec", "unparse",
]  # fmt: skip

IMAGE_READERS = ("folder", "archive", "shards", "huggingface")  # the data sets with all keywords of `Decoding`


def is_autoencoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of an autoencoder: it has a group `loss`, and no path."""
    return "loss" in config


def parts_of(config: Mapping[str, Any]) -> dict[str, Table]:
    """The specs in a configuration, by their keys: of a denoiser, or of an autoencoder."""
    return AUTOENCODER_PARTS if is_autoencoder(config) else PARTS


def modern_config(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration as in config.json, with present names in place of old ones, and with keywords added since."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for key, table in parts_of(config).items():
        group, _, name = key.rpartition(".")
        place = config.get(group, {}) if group else config
        if place.get(name) is not None:
            place[name] = spec(table, _as_it_was(key, place[name]))
    return config


def _as_it_was(key: str, saved: Any) -> Any:
    """A part of a configuration, with what its absent keywords meant when it was saved complete."""
    if key != "data" or isinstance(saved, str):
        return saved
    was: dict[str, Any] = {}
    if "corrupt" in saved and saved.get("name") in IMAGE_READERS:
        # Images were read as the camera stored them, and captions not at all.
        was = {key: value for key, value in {"exif": False, "caption": "none"}.items() if key not in saved}
    if "label_key" in saved and "conditions" not in saved:
        was["conditions"] = False
    return {**saved, **was}


def conditioning_keywords(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What the conditioner of a configuration takes, by the denoiser's keywords; none where there is no conditioner."""
    chosen = config.get("conditioner")
    if chosen is None:
        return ()
    kind: Any = find(CONDITIONERS, chosen.name)
    keywords: tuple[str, ...] = kind.keywords
    return keywords


def denoiser(
    config: ml_collections.ConfigDict,
    shape: tuple[int, ...],
    num_classes: int | None,
    sde: sde_lib.SDE | None = None,
) -> models.Denoiser:
    """The untrained denoiser of a configuration, for samples of a shape (*D), with classes or without.

    The path is that of the configuration, or `sde`, where the run has built it already.
    """
    sde = sde or build(SDES, config.sde, shape=shape)
    cells = (config.transform.low, config.transform.high)
    parameterisation = build(PRECONDITIONS, config.precondition, sde=sde, cells=cells)
    inputs = getattr(parameterisation, "inputs", 1)
    code_size = sde.size if isinstance(sde, sde_lib.MultivariateVP) else None
    net = network(config, shape, num_classes, inputs, code_size)
    if isinstance(net, ConditionedNetwork):
        net.required = config.training.label_dropout == 0
    return models.Denoiser(net, parameterisation, label_required=label_required(config, num_classes))


def label_required(config: ml_collections.ConfigDict, num_classes: int | None) -> bool:
    """Whether the network is always given its class in training, so that it means nothing without one."""
    return num_classes is not None and config.training.label_dropout == 0


def network(
    config: ml_collections.ConfigDict,
    shape: tuple[int, ...],
    num_classes: int | None,
    inputs: int = 1,
    code_size: int | None = None,
) -> nn.Module:
    """The untrained network of a configuration, with its conditioner if it has one.

    Raises:
        ValueError: if the parameterisation shows the network several inputs, and it takes one; or if the path has a
            latent code, or the conditioner gives tokens or images, and it takes none.
    """
    takes = inspect.signature(find(NETWORKS, config.net.name)).parameters
    if code_size is not None and "code_size" not in takes:
        raise ValueError(
            f"expected a network that takes a code, for the path {config.sde.name}, got {config.net.name}: use unet, "
            "vdm or mlp"
        )
    if inputs > 1 and "inputs" not in takes:
        raise ValueError(
            f"expected a network that takes {inputs} inputs, for the parameterisation {config.precondition.name}, got "
            f"{config.net.name}: use unet or vdm"
        )
    sizes = {
        "channels": shape[0], "inputs": inputs, "shape": shape, "num_classes": num_classes, "code_size": code_size,
    }  # fmt: skip
    if (chosen := config.get("conditioner")) is None:
        built: nn.Module = build(NETWORKS, config.net, **sizes)
        return built
    conditioner: conditioners.Conditioner = build(CONDITIONERS, chosen, **sizes)
    if "label" in conditioner.keywords:  # the class reaches the network by its conditioner alone
        sizes["num_classes"] = None
    return ConditionedNetwork(build(NETWORKS, _conditioned(config, conditioner), **sizes), conditioner)


def _conditioned(config: ml_collections.ConfigDict, conditioner: conditioners.Conditioner) -> dict[str, Any]:
    """The spec of the network, with the width of the tokens and the channels of the images that it is given.

    Raises:
        ValueError: if it takes none, or was set to others.
    """
    name, by = config.net.name, config.conditioner.name
    takes, net = inspect.signature(find(NETWORKS, name)).parameters, dict(config.net)
    for key, what, value in (
        ("context", "context tokens", conditioner.context), ("concat", "images beside x", conditioner.concat),
    ):  # fmt: skip
        if value and key not in takes:
            use = ", ".join(each for each in NETWORKS.parts if key in inspect.signature(NETWORKS[each]).parameters)
            raise ValueError(f"expected a network that takes {what}, for the conditioner {by}, got {name}: use {use}")
        if value and (net.get(key) or value) != value:
            raise ValueError(
                f"expected net.{key}={value}, as the conditioner {by} gives it, got {net[key]}: leave it out"
            )
        net |= {key: value} if value else {}
    return net


def autoencoder(partial: str | Mapping[str, Any], channels: int) -> ImageAutoencoder:
    """The untrained autoencoder of a spec, as kl:code_channels=4 or vq:quantiser=codebook, for images of channels."""
    built: ImageAutoencoder = build(AUTOENCODERS, partial, channels=channels)
    return built


def autoencoder_spec(module: ImageAutoencoder) -> ml_collections.ConfigDict:
    """The spec of an autoencoder, from which `autoencoder` makes the same network."""
    settings = settings_of(module)
    del settings["channels"]
    if isinstance(module, models.VQAutoencoder):
        quantiser = settings_of(module.quantiser)
        quantiser.pop("width", None)
        name = name_of(QUANTISERS, type(module.quantiser))
        return spec(AUTOENCODERS, "vq", **{**settings, "quantiser": unparse({"name": name, **quantiser})})
    return spec(AUTOENCODERS, name_of(AUTOENCODERS, type(module)), **settings)


def sde_spec(sde: sde_lib.SDE) -> ml_collections.ConfigDict:
    """The spec of a path; of a learned one as it is now."""
    if isinstance(sde, sde_lib.LearnedVP):
        sde = sde.frozen()
    keywords = {field.name: getattr(sde, field.name) for field in dataclasses.fields(sde)}  # type: ignore[arg-type]
    if isinstance(sde, sde_lib.DiscreteVPSDE):
        keywords["betas"] = sde.named
    return spec(SDES, name_of(SDES, type(sde)), **keywords)


def precondition_spec(parameterisation: Parameterisation, sde: sde_lib.SDE) -> ml_collections.ConfigDict:
    """The spec of a parameterisation, for a run along a path.

    Raises:
        ValueError: if it is none of `models.precondition`.
    """
    for name, function in precondition.PREDICTS.items():
        if parameterisation is function:
            return spec(PRECONDITIONS, name)
    if isinstance(parameterisation, Levels):
        return spec(PRECONDITIONS, "levels", probabilities=parameterisation.probabilities)
    if isinstance(parameterisation, precondition.EDM):
        return spec(PRECONDITIONS, "edm", sigma_data=parameterisation.sigma_data)
    if isinstance(parameterisation, precondition.TimeConditioned) and isinstance(parameterisation.sde, sde_lib.SDE):
        keywords = {
            key: getattr(parameterisation, key) for key in ("predicts", "unit", "scale", "shift", "integer_timesteps")
        }
        along = "" if parameterisation.sde == sde else unparse(sde_spec(parameterisation.sde))
        return spec(PRECONDITIONS, "time_conditioned", **keywords, along=along)
    raise ValueError(f"expected a parameterisation of models.precondition, got {parameterisation}")
