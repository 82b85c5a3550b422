"""Checkpoints of score_sde_pytorch (Song et al. 2021): `ddpm` and `ncsnpp` along VE, VP and sub-VP."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.checkpoints import ncsnv2
from scorefield.models.checkpoints.files import FOURIER
from scorefield.models.checkpoints.score_sde import names
from scorefield.models.checkpoints.score_sde.published import DEFAULTS, IDLE, SCORE_SDE
from scorefield.models.checkpoints.spec import CheckpointSpec, levels_at, with_overrides
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.unet import UNet
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import SDE, VESDE, VPSDE, DiscreteVPSDE, SubVPSDE

PYRAMIDS = {"none": "none", "input_skip": "skip", "output_skip": "skip", "residual": "residual"}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds.

    Args:
        state: their state dict.
        architecture: values of their configuration by their own names (`DEFAULTS`), for what the weights do not tell;
            or `config`, the name of a published one, as "ve/cifar10_ncsnpp_continuous", and what differs from it. With
            neither, it is the published one whose tensors these are, if there is one alone.

    Raises:
        ValueError: for a name or a configuration that they do not have, or one that this network has no switch for.
    """
    if "begin_conv.weight" in state:
        return ncsnv2.spec_of(state, **architecture)
    if architecture:
        return _of_values(architecture, state)
    sizes = {key: value for key, value in names.sizes(state).items() if key in ("nf", "ch_mult", "num_res_blocks")}
    published = SCORE_SDE.items() if sizes else ()
    alike = {name: values for name, values in published if sizes.items() <= {**DEFAULTS, **values}.items()}
    fitting = {name: values for name, values in alike.items() if _fits(state, _of_values(values))}
    if any(values["sde"] == "vesde" for values in fitting.values()) and "sigmas" in state:
        ends = _ends(state)
        fitting = {name: values for name, values in fitting.items() if _expected_ends(values) == ends}
    if fitting and all(values == next(iter(fitting.values())) for values in fitting.values()):
        return _of_values(next(iter(fitting.values())))
    several = f"those of {', '.join(fitting)}" if fitting else "of none of the published configurations"
    raise ValueError(f"the weights are {several}: say which with config=, or give what of theirs is no size (sde=, ..)")


def _fits(state: Mapping[str, Tensor], spec: CheckpointSpec) -> bool:
    """Whether the tensors of a state dict are those of a network: their names, and how many numbers there are."""
    with torch.device("meta"):
        network = spec.network(**spec.settings)
        ours, entries = network.state_dict(), list(spec.entries(network))
    theirs = [name.split("|") for entry in entries for name in entry.theirs]
    numbers = sum(ours[entry.ours].numel() for entry in entries)
    found = {next((name for name in either if name in state), "") for either in theirs}
    needed = {name for name in state if not name.endswith(spec.extra)}
    return found == needed and numbers == sum(state[name].numel() for name in needed)


def _ends(state: Mapping[str, Tensor]) -> tuple[float, float, int]:
    """The largest and smallest noise level, and their number, as the buffer has them."""
    sigmas = state["sigmas"].double()
    return round(float(sigmas.max()), 3), round(float(sigmas.min()), 6), len(sigmas)


def _expected_ends(values: Mapping[str, Any]) -> tuple[float, float, int]:
    values = {**DEFAULTS, **values}
    return round(float(values["sigma_max"]), 3), round(float(values["sigma_min"]), 6), int(values["num_scales"])


def _found(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights tell beside what was given: sizes, noise levels, and VE where there are Fourier features."""
    found = names.sizes(state)
    levels = found.pop("levels", ())
    if levels:  # at 16x16, in all published ones
        at = max(given.get("attn_resolutions") or (16,))
        size = found["image_size"] = given.get("image_size") or at << levels[0]
        found["attn_resolutions"] = tuple(size >> level for level in levels)
    if "sigmas" in state:
        found |= zip(("sigma_max", "sigma_min", "num_scales"), _ends(state), strict=True)
    return found | ({"embedding_type": "fourier", "sde": "vesde"} if FOURIER in state else {})


def _of_values(architecture: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> CheckpointSpec:
    config = architecture.get("config")
    if config is not None and config not in SCORE_SDE:
        raise ValueError(f"expected config to be one of {', '.join(SCORE_SDE)}, got {config!r}")
    known = SCORE_SDE[config] if config else _found(state, architecture) if state else {}
    values = with_overrides({**DEFAULTS, **known}, architecture)
    for key, one in IDLE.items():
        if values[key] != one:
            raise ValueError(f"expected {key} to be {one!r}, as in all published ones, got {values[key]!r}")
    if values["name"] not in ("ddpm", "ncsnpp"):
        raise ValueError(f"expected name to be ddpm or ncsnpp, got {values['name']!r}")
    ve = values["sde"] == "vesde"
    if ve and state is not None and "sigmas" in state and _expected_ends(values) != _ends(state):
        raise ValueError(
            f"expected sigma_max, sigma_min and num_scales to be {_ends(state)}, as the weights' sigmas have them, got "
            f"{_expected_ends(values)}"
        )
    centered = values["centered"] if values["centered"] is not None else not ve
    network: type[nn.Module] = UNet if values["name"] == "ddpm" else NCSNpp
    settings = _ddpm(values) if network is UNet else _ncsnpp(values)
    size, channels = values["image_size"], values["num_channels"]
    return CheckpointSpec(
        network,
        {"channels": channels, "unit_range": not centered, **settings},
        names.ddpm if network is UNet else names.ncsnpp,
        _precondition(values),
        _path(values),
        (channels, size, size),
        low=-1.0 if centered else 0.0,
        # A network without noise conditioning keeps its layers, unused.
        extra=("sigmas",) if values["conditional"] else ("sigmas", "Dense_0.weight", "Dense_0.bias", FOURIER),
    )


def _path(values: Mapping[str, Any]) -> SDE:
    beta_min, beta_max, steps = values["beta_min"], values["beta_max"], values["num_scales"]
    if values["sde"] == "vesde":
        return VESDE(float(values["sigma_min"]), float(values["sigma_max"]))
    if values["sde"] == "subvpsde":
        return SubVPSDE(beta_min, beta_max)
    if values["sde"] != "vpsde":
        raise ValueError(f"expected sde to be vpsde, subvpsde or vesde, got {values['sde']!r}")
    return (
        VPSDE(beta_min, beta_max)
        if values["continuous"]
        else DiscreteVPSDE("linear", steps, beta_min / steps, beta_max / steps)
    )


def _precondition(values: Mapping[str, Any]) -> TimeConditioned:
    sde, steps = _path(values), values["num_scales"]
    if isinstance(sde, VESDE):
        # Discrete levels are counted from the largest.
        predicts = "scaled_score" if values["scale_by_sigma"] is not False else "score"
        if values["embedding_type"] == "fourier" and values["name"] == "ncsnpp":
            return TimeConditioned(sde, predicts, "log_sigma")
        return TimeConditioned(sde, predicts, "time", 1.0 - steps, steps - 1.0)
    if isinstance(sde, DiscreteVPSDE):
        return TimeConditioned(sde, "eps", "time", float(steps), -1.0)
    return TimeConditioned(sde, "eps", "time", 999.0)


def _levels(values: Mapping[str, Any]) -> tuple[int, ...]:
    return levels_at(values["image_size"], values["attn_resolutions"], len(values["ch_mult"]))


def _ddpm(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": values["nf"],
        "multipliers": tuple(values["ch_mult"]),
        "blocks": values["num_res_blocks"],
        "attention": _levels(values),
        "attention_up": "last",
        "dropout": values["dropout"],
        "frequencies": "timesteps",
        "smallest_group": 1,
        "resample_conv": values["resamp_with_conv"],
    }


def _ncsnpp(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": values["nf"],
        "multipliers": tuple(values["ch_mult"]),
        "blocks": values["num_res_blocks"],
        "attention": _levels(values),
        "biggan": values["resblock_type"].lower() == "biggan",
        "resample_conv": values["resamp_with_conv"],
        "fir": tuple(values["fir_kernel"]) if values["fir"] else (1, 1),
        "pyramid_in": PYRAMIDS[values["progressive_input"].lower()],
        "combine": values["progressive_combine"].lower(),
        "pyramid_out": PYRAMIDS[values["progressive"].lower()],
        "rescale": values["skip_rescale"],
        "dropout": values["dropout"],
        "frequencies": "gaussian" if values["embedding_type"].lower() == "fourier" else "timesteps",
        "conditional": values["conditional"],
    }
