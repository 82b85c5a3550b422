"""Weights of DiT as github.com/facebookresearch/DiT names them (Peebles and Xie 2023).

The published networks take latents of Stable Diffusion's autoencoder, times 0.18215, which a decoder turns into images.
They predict the noise along DDPM's linear betas, and a variance, which a denoiser does not use.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.models.checkpoints.spec import (
    CheckpointSpec,
    Entry,
    check_inferred,
    cos_first,
    itself,
    same,
    with_overrides,
)
from scorefield.models.networks.dit import SIZES, DiT
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import DiscreteVPSDE

HEADS = {size["width"]: size["heads"] for size in SIZES.values()}
BLOCK = {
    "modulate": "adaLN_modulation.1",
    "attention.qkv": "attn.qkv",
    "attention.project": "attn.proj",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds; all but the heads follows from its names and shapes.

    Args:
        state: their state dict.
        architecture: keywords of their `DiT`, by their own names. `num_heads` is needed at a width that none of the
            published sizes has; `class_dropout_prob=0` says that no row of the table of classes is the empty one;
            the others are only compared with the weights.

    Raises:
        ValueError: if these are other weights, a keyword is not theirs or contradicts the weights, or nothing tells
            the heads.
    """
    if "x_embedder.proj.weight" not in state or "y_embedder.embedding_table.weight" not in state:
        raise ValueError(
            f"expected the weights of DiT (x_embedder.proj.weight, ..), got {', '.join(sorted(state)[:3])}"
        )
    values = _values(state, architecture)
    settings = {
        "channels": values["in_channels"],
        "patch": values["patch_size"],
        "width": values["hidden_size"],
        "depth": values["depth"],
        "heads": values["num_heads"],
        "mlp_ratio": values["mlp_ratio"],
        "num_classes": values["num_classes"],
        "frequencies": "open_timesteps",
        "variances": values["learn_sigma"],
    }
    sde, size = DiscreteVPSDE(), values["input_size"]
    return CheckpointSpec(
        DiT,
        settings,
        _entries,
        TimeConditioned(sde, "eps", scale=float(sde.steps), shift=-1.0),
        sde,
        (values["in_channels"], size, size),
        # Latents have no range.
        low=-math.inf,
        high=math.inf,
        levels=None,
        unlabelled=values["class_dropout_prob"] > 0,
        extra=("pos_embed",),
    )


def _values(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Their constructor's keywords, by their names."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    empty = given.get("class_dropout_prob", 0.1) > 0
    inferred = {
        "input_size": patch * math.isqrt(state["pos_embed"].shape[1]),
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "num_heads": given.get("num_heads", HEADS.get(width)),
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / width,
        "class_dropout_prob": given.get("class_dropout_prob", 0.1),
        "num_classes": len(state["y_embedder.embedding_table.weight"]) - empty,
        "learn_sigma": len(state["final_layer.linear.weight"]) == 2 * channels * patch**2,
    }
    values = with_overrides(inferred, given)
    if values["num_heads"] is None:
        raise ValueError(
            f"expected num_heads, which weights do not tell, as the width is none of {tuple(HEADS)}: {width}"
        )
    return check_inferred({**inferred, "num_heads": values["num_heads"]}, values)


def _entries(network: DiT) -> Iterator[Entry]:
    yield from same("patchify", "x_embedder.proj")
    yield Entry("embed.perceptron.0.weight", ("t_embedder.mlp.0.weight",), cos_first)
    yield Entry("embed.perceptron.0.bias", ("t_embedder.mlp.0.bias",), itself)
    yield from same("embed.perceptron.2", "t_embedder.mlp.2")
    assert network.embed.labels is not None
    rows = network.embed.labels.num_embeddings
    # Trained without the empty class they have no row for it; ours is then zero.
    yield Entry("embed.labels.weight", ("y_embedder.embedding_table.weight",), lambda table: _padded(table, rows))
    for i in range(len(network.blocks)):
        for ours, theirs in BLOCK.items():
            yield from same(f"blocks.{i}.{ours}", f"blocks.{i}.{theirs}")
    yield from same("modulate", "final_layer.adaLN_modulation.1")
    yield from same("head", "final_layer.linear")


def _padded(table: Tensor, rows: int) -> Tensor:
    return torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
