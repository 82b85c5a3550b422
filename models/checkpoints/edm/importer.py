"""State dicts of EDM (Karras et al. 2022): DDPM++, NCSN++ and ADM, each under any of its four preconditionings."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scorefield.models import precondition
from scorefield.models.checkpoints.edm import names
from scorefield.models.checkpoints.spec import (
    CheckpointSpec,
    check_attention,
    check_inferred,
    levels_at,
    with_overrides,
)
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.precondition import Precondition, TimeConditioned
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, DiscreteVPSDE

# The constructors' keywords, by their own names; None: the weights tell.
DEFAULTS: dict[str, Any] = {
    "precond": "EDMPrecond",
    "model_type": None,
    "img_resolution": None,
    "img_channels": None,
    "label_dim": None,
    "augment_dim": None,
    "model_channels": None,
    "channel_mult": None,
    "channel_mult_emb": 4,
    "channel_mult_noise": None,
    "num_blocks": None,
    "attn_resolutions": None,
    "dropout": 0.1,
    "label_dropout": 0.0,
    "embedding_type": None,
    "encoder_type": None,
    "decoder_type": None,
    "resample_filter": None,
    "sigma_data": 0.5,
    "sigma_min": None,
    "sigma_max": None,
    "beta_d": 19.9,
    "beta_min": 0.1,
    "M": 1000,
    "C_1": 0.001,
    "C_2": 0.008,
    "epsilon_t": 1e-5,
    "use_fp16": False,
}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds, with the prefix "model." of the preconditioned network or not.

    Sizes, widths, levels, blocks, attention and kinds are read off the names and shapes.

    Args:
        state: their state dict.
        architecture: keywords of their constructors (`DEFAULTS`): `precond` ("EDMPrecond", "VPPrecond", "VEPrecond" or
            "iDDPMPrecond") where it is not EDM's.

    Raises:
        ValueError: for a keyword that they do not have or that the weights contradict, or another preconditioning.
    """
    values = with_overrides(DEFAULTS, architecture)
    prefix = "model." if any(name.startswith("model.") for name in state) else ""
    shapes = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in state.items()}
    if "map_layer0.weight" not in shapes:
        raise ValueError(f"expected the weights of an EDM network (map_layer0.weight, ..), got {sorted(shapes)[:3]}")
    adm = "out_conv.weight" in shapes
    size = max(int(match[1]) for name in shapes if (match := re.match(r"enc\.(\d+)x", name)))
    channels = shapes[f"enc.{size}x{size}_conv.weight"][1]
    sde, parameterisation = _preconditioning(values)
    settings = _adm(shapes, size, values) if adm else _song(shapes, size, values, _taps(state))
    check_inferred(
        {
            "img_resolution": size,
            "img_channels": channels,
            "label_dim": settings["num_classes"] or 0,
            "model_type": "DhariwalUNet" if adm else "SongUNet",
            "model_channels": settings["width"],
            "channel_mult": settings["multipliers"],
            "num_blocks": settings["blocks"],
        },
        values,
    )
    if (sizes := values["attn_resolutions"]) is not None:
        at = levels_at(size, sizes, len(settings["multipliers"]))
        check_attention("attn_resolutions", sizes, settings["attention"], at)
    return CheckpointSpec(
        ADM if adm else NCSNpp,
        settings,
        lambda network: names.entries(network, size, prefix),
        parameterisation,
        sde,
        (channels, size, size),
        unlabelled=settings["num_classes"] is None or values["label_dropout"] > 0,
        extra=("resample_filter", "map_augment.weight", "u"),
    )


def _preconditioning(values: Mapping[str, Any]) -> tuple[SDE, Precondition]:
    """The path and the parameterisation of Karras et al. 2022, Table 1."""
    kind = values["precond"]
    if kind == "EDMPrecond":
        sde: SDE = EDMSDE(values["sigma_min"] or 0.002, values["sigma_max"] or 80.0)
        return sde, precondition.edm(values["sigma_data"])
    if kind == "VPPrecond":
        sde = VPSDE(values["beta_min"], values["beta_min"] + values["beta_d"], t_min=values["epsilon_t"])
        return sde, TimeConditioned(sde, "eps", "time", values["M"] - 1.0)
    if kind == "VEPrecond":
        sde = VESDE(values["sigma_min"] or 0.02, values["sigma_max"] or 100.0)
        return sde, TimeConditioned(sde, "scaled_score", "log_sigma", 1.0, -math.log(2))
    if kind == "iDDPMPrecond":
        if (values["C_1"], values["C_2"]) != (0.001, 0.008):
            raise ValueError(f"expected C_1=0.001 and C_2=0.008, as published, got {values['C_1']}, {values['C_2']}")
        sde = DiscreteVPSDE("cosine", values["M"])
        return sde, TimeConditioned(sde, "eps", "time", float(values["M"]), -1.0, integer_timesteps=True)
    raise ValueError(f"expected precond to be EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond, got {kind!r}")


def _common(shapes: Mapping[str, tuple[int, ...]], size: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """What both networks' names and shapes tell."""
    sizes = sorted({int(m[1]) for name in shapes if (m := re.match(r"enc\.(\d+)x", name))}, reverse=True)
    stem = shapes[f"enc.{size}x{size}_conv.weight"]
    width = shapes["map_layer0.weight"][0] // values["channel_mult_emb"]
    first = [f"enc.{s}x{s}_block0" for s in sizes]
    labels = shapes.get("map_label.weight")
    return {
        "channels": stem[1],
        "width": width,
        "multipliers": tuple(shapes[f"{name}.conv0.weight"][0] // width for name in first),
        "blocks": sum(bool(re.fullmatch(rf"enc\.{size}x{size}_block\d+\.conv0\.weight", name)) for name in shapes),
        "attention": tuple(i for i, name in enumerate(first) if f"{name}.qkv.weight" in shapes),
        "dropout": values["dropout"],
        "num_classes": None if labels is None else labels[1],
    }


def _taps(state: Mapping[str, Tensor]) -> tuple[float, ...]:
    """The filter of their resampling, which is among their buffers: integers where it was made of integers."""
    name = next((name for name in state if name.endswith("resample_filter")), None)
    if name is None:
        return ()
    line = state[name].double().reshape(state[name].shape[-2:]).sum(0)
    return tuple(round(float(tap), 6) for tap in line / line.abs().min())


def _song(
    shapes: Mapping[str, tuple[int, ...]], size: int, values: Mapping[str, Any], taps: tuple[float, ...]
) -> dict[str, Any]:
    fourier = "map_noise.freqs" in shapes
    kinds = {kind for kind in ("aux_residual", "aux_skip") if any(kind in name for name in shapes)}
    pyramid_in = "residual" if "aux_residual" in kinds else "skip" if "aux_skip" in kinds else "none"
    deeper = any(f"dec.{size // 2}x{size // 2}_aux_conv" in name for name in shapes)
    fir = taps or values["resample_filter"] or ((1, 3, 3, 1) if fourier or kinds else (1, 1))
    if values["resample_filter"] is not None:
        check_inferred({"resample_filter": fir}, values)
    return {
        **_common(shapes, size, values),
        "fir": tuple(fir),
        "pyramid_in": pyramid_in,
        "pyramid_out": "skip" if deeper else "none",
        "frequencies": "gaussian" if fourier else "timesteps",
        "label_first": True,
    }


def _adm(shapes: Mapping[str, tuple[int, ...]], size: int, values: Mapping[str, Any]) -> dict[str, Any]:
    found = _common(shapes, size, values)
    variances = shapes["out_conv.weight"][0] == 2 * found["channels"]
    return {**found, "head_width": 64, "frequencies": "open_timesteps", "variances": variances}
