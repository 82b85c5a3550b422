"""Checkpoints of NCSN and NCSNv2: ermongroup/ncsnv2's (Song and Ermon 2019 and 2020), and score_sde_pytorch's NCSNv2.

Both name every tensor alike. A checkpoint of ermongroup's is a list: the state dict, whose names start with "module.";
the optimiser's; the epoch; the step; and, if there is one, the moving average of the parameters, which has neither that
prefix nor the buffer `sigmas`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.models.checkpoints.spec import CheckpointSpec, Entry, itself, with_overrides
from scorefield.models.networks.ncsn import NCSN
from scorefield.models.networks.ncsnv2 import NCSNv2
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import VESDE

# What their configurations say, by their own names; what is None the weights tell, or `spec_of` says where it is from.
DEFAULTS: dict[str, Any] = {
    "image_size": None,
    "sigmas": None,
    "sigma_begin": None,
    "sigma_end": None,
    "sigma_dist": "geometric",
    "rescaled": False,
    "logit_transform": False,
    "channels": None,
    "ngf": None,
    "num_classes": None,
    "normalization": "InstanceNorm++",
    "nonlinearity": "elu",
    "spec_norm": False,
}
# What score_sde_pytorch calls some of these, and what else its configurations hold, of no consequence here.
ALIASES = {
    "sigma_max": "sigma_begin",
    "sigma_min": "sigma_end",
    "centered": "rescaled",
    "num_channels": "channels",
    "nf": "ngf",
    "num_scales": "num_classes",
}
IDLE = (
    *("config", "name", "sde", "continuous", "scale_by_sigma", "ch_mult", "num_res_blocks", "attn_resolutions"),
    *("embedding_type", "dropout", "interpolation"),
)
# How they number the stages, and the refining blocks from the deepest up; and the published size at each depth.
STAGES = {4: ("1", "2", "3", "4"), 5: ("1", "2", "3", "4", "5"), 6: ("1", "2", "3", "31", "4", "5")}
REFINE = {4: ("1", "2", "3", "4"), 5: ("1", "2", "3", "4", "5"), 6: ("1", "2", "31", "3", "4", "5")}
SIZES = {4: 32, 5: 128, 6: 256}
# Patterns of our names, and what they have in that place.
RENAMED = {
    r"^stem": "begin_conv",
    r"^head": "end_conv",
    r"^norm": "normalizer",
    r"^(stages\.\d\.\d)\.norm": r"\1.normalize",
    r"units_in": "adapt_convs",
    r"units_out": "output_convs",
    r"fuse_(norm|conv)s": r"msf.\1s",
    r"pool_(norm|conv)s": r"crp.\1s",
}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds: NCSN if its normalisations are tables ("embed"), or NCSNv2.

    Args:
        state: their state dict.
        architecture: values of their configuration by their own names (`DEFAULTS`, or `ALIASES`). The noise levels are
            `sigmas`, or else the buffer of that name, or run from `sigma_begin` to `sigma_end`: 1 to 0.01 for ten
            levels of NCSN. The image size is the published one at this depth unless said. `rescaled` images are in
            -1 .. 1 and not in 0 .. 1; `logit_transform`, in logits.

    Raises:
        ValueError: for a name that they do not have, another network than these, values that the weights contradict,
            or noise levels that nothing tells.
    """
    given = {ALIASES.get(key, key): value for key, value in architecture.items() if key not in IDLE}
    values = with_overrides(DEFAULTS, given)
    _check(state, values)
    settings, rows = _settings(state, values), _rows(state)
    sigmas = _sigmas(state.get("sigmas"), rows, values)
    sde = VESDE(sigma_min=min(sigmas), sigma_max=max(sigmas))
    size = values["image_size"] or SIZES[settings["depth"]]
    low, high = (0.0 if settings["unit_range"] else -1.0), 1.0
    if values["logit_transform"]:
        low, high = -math.inf, math.inf
    return CheckpointSpec(
        NCSN if rows else NCSNv2,
        settings | {"sigmas": sigmas} if rows else settings,
        _entries,
        # In the path's own scale; NCSN takes c_noise.
        TimeConditioned(sde, "score" if rows else "scaled_score", "log_sigma", 0.25),
        sde,
        (settings["channels"], size, size),
        low,
        high,
        levels=None if values["logit_transform"] else 256,
    )


def _check(state: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    for key in ("normalization", "nonlinearity", "spec_norm"):
        if values[key] != DEFAULTS[key]:
            raise ValueError(f"expected {key} to be {DEFAULTS[key]!r}, as in all published ones, got {values[key]!r}")
    if "begin_conv.weight" not in state:
        raise ValueError(f"expected the weights of NCSN or NCSNv2 (begin_conv.weight, ..), got {sorted(state)[:3]} ..")


def _rows(state: Mapping[str, Tensor]) -> int | None:
    """How many levels the tables of NCSN have, and None of NCSNv2."""
    return len(state["normalizer.embed.weight"]) if "normalizer.embed.weight" in state else None


def _settings(state: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    stages = {name.split(".")[0].removeprefix("res") for name in state if name.startswith("res")}
    depth = next((depth for depth, labels in STAGES.items() if stages == set(labels)), None)
    if depth is None:
        raise ValueError(f"expected the stages res1 to res4, or res5, or these and res31; got {sorted(stages)}")
    width, channels = state["begin_conv.weight"].shape[:2]
    for key, found in {"ngf": width, "channels": channels}.items():
        if values[key] not in (None, found):
            raise ValueError(f"expected {key} to be {found}, as the weights have it, got {values[key]}")
    unit_range = not (values["rescaled"] or values["logit_transform"])
    return {"channels": channels, "width": width, "depth": depth, "unit_range": unit_range}


def _sigmas(buffer: Tensor | None, rows: int | None, values: Mapping[str, Any]) -> tuple[float, ...]:
    sigmas = buffer if values["sigmas"] is None else values["sigmas"]
    if sigmas is None:
        ends = values["sigma_begin"], values["sigma_end"]
        begin, end = (1.0, 0.01) if rows == 10 and ends == (None, None) else ends
        if begin is None or end is None:
            raise ValueError("the weights do not tell the noise levels: give sigmas, or sigma_begin and sigma_end")
        count = rows or values["num_classes"] or 2
        if values["sigma_dist"] == "uniform":
            sigmas = torch.linspace(begin, end, count, dtype=torch.float64)
        else:
            sigmas = torch.linspace(math.log(begin), math.log(end), count, dtype=torch.float64).exp()
    levels = tuple(torch.as_tensor(sigmas, dtype=torch.float64).tolist())
    for expected in (rows, values["num_classes"]):
        if expected not in (None, len(levels)):
            raise ValueError(f"expected {expected} noise levels, got {len(levels)}: give as many sigmas")
    return levels


def _entries(network: NCSN | NCSNv2) -> Iterator[Entry]:
    for ours in network.state_dict():
        theirs = _renamed(ours, network.depth)
        if not theirs.endswith("table"):
            yield Entry(ours, (theirs,), itself)
        elif isinstance(network, NCSN):
            yield Entry(ours, (theirs.replace("table", "embed.weight"),), itself)
        else:
            parts = tuple(theirs.replace("table", part) for part in ("gamma", "alpha", "beta"))
            yield Entry(ours, parts, lambda *vectors: torch.cat(vectors)[None])


def _renamed(name: str, depth: int) -> str:
    for ours, theirs in RENAMED.items():
        name = re.sub(ours, theirs, name)
    # Ours count from 0 and say conv1, theirs from 1 and say 1_1_conv.
    name = re.sub(r"(convs(?:\.\d)?)\.(\d)\.(norm|conv)(\d)", lambda m: f"{m[1]}.{int(m[2]) + 1}_{m[4]}_{m[3]}", name)
    name = re.sub(r"^stages\.(\d)", lambda m: f"res{STAGES[depth][int(m[1])]}", name)
    name = re.sub(r"^refine\.(\d)", lambda m: f"refine{REFINE[depth][int(m[1])]}", name)
    halving = "|".join(STAGES[depth][1:-2])
    return re.sub(rf"^(res(?:{halving})\.0\.(?:conv2|shortcut))", r"\1.conv", name)
