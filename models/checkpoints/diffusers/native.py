"""`UNet2DModel` of diffusers where `UNet` is the same network: its settings, and the names of its tensors.

The names are those of `UNet2DConditionModel` too, with `ADM` in the place of `UNet`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.checkpoints.spec import (
    Entry,
    cos_first,
    itself,
    pointwise,
    residual_block,
    same,
    spatial_transformer,
    with_unknown,
)
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.transformer import SpatialTransformer
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.unet import UNet

# By what it replaced (diffusers 0.15), which files on the hub still have.
RENAMED = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
FREQUENCIES = {0: "open_timesteps", 1: "timesteps"}
GROUPS = 32
BLOCK = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "project": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
}
# What `UNet` has a switch for, or has always.
EXPRESSED: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "freq_shift": tuple(FREQUENCIES),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "norm_num_groups": (GROUPS,),
    "attn_norm_num_groups": (None, GROUPS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


def obstacle(config: Mapping[str, Any]) -> str | None:
    """The first setting of a configuration that `UNet` does not have, None if it is the same network."""
    for key, values in EXPRESSED.items():
        if config[key] not in values:
            return f"{key}={config[key]!r}"
    down, up, widths = (list(config[key]) for key in ("down_block_types", "up_block_types", "block_out_channels"))
    for kind in [*down, *up]:
        if kind not in ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"):
            return str(kind)
    if len(down) != len(widths) or up[::-1] != [kind.replace("Down", "Up") for kind in down]:
        return "up_block_types that do not mirror down_block_types"
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        return f"time_embedding_dim={config['time_embedding_dim']}"
    if config["out_channels"] != config["in_channels"]:
        return f"out_channels={config['out_channels']} of {config['in_channels']}"
    attending = [width for width, kind in zip(widths, down, strict=True) if "Attn" in kind]
    attending += widths[-1:] if config["add_attention"] else []
    head = config["attention_head_dim"]
    if head is not None and any(width % head for width in attending):
        return f"attention_head_dim={head}, which does not divide {attending}"
    return None


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keywords of the `UNet` that is the same network."""
    widths = config["block_out_channels"]
    scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
    return {
        "channels": config["in_channels"],
        "width": widths[0],
        "multipliers": tuple(width / widths[0] for width in widths),
        "blocks": config["layers_per_block"],
        "attention": tuple(i for i, kind in enumerate(config["down_block_types"]) if "Attn" in kind),
        "middle_attention": config["add_attention"],
        "middle_norm": not scale_shift or config["attn_norm_num_groups"] is not None,
        "head_width": config["attention_head_dim"],
        "dropout": config["dropout"],
        "num_classes": config["num_class_embeds"],
        "frequencies": FREQUENCIES[config["freq_shift"]],
        "smallest_group": 1,
        "eps": config["norm_eps"],
        "scale_shift": scale_shift,
        "symmetric_padding": config["downsample_padding"] == 1,
        "unit_range": config["center_input_sample"],
    }


def entries(network: UNet | ADM, cosines_first: bool = False) -> Iterator[Entry]:
    """What each tensor of a `UNet`, or of an `ADM` that resamples by convolutions, is made of."""
    first = cos_first if cosines_first else itself
    yield Entry("embed.perceptron.0.weight", ("time_embedding.linear_1.weight",), first)
    yield Entry("embed.perceptron.0.bias", ("time_embedding.linear_1.bias",), itself)
    yield from same("embed.perceptron.2", "time_embedding.linear_2")
    if network.embed.labels is not None:
        yield Entry("embed.labels.weight", ("class_embedding.weight",), with_unknown)
    yield from same("stem", "conv_in")
    yield from _way(network.down, "down", "downsamplers")
    yield from _residual(network.middle_in, "middle_in", "mid_block.resnets.0")
    if isinstance(network.middle_attention, Attention | SpatialTransformer):
        yield from _attention(network.middle_attention, "middle_attention", "mid_block.attentions.0")
    yield from _residual(network.middle_out, "middle_out", "mid_block.resnets.1")
    yield from _way(network.up, "up", "upsamplers")
    yield from same("norm", "conv_norm_out")
    yield from same("head", "conv_out")


def either(name: str) -> str:
    """A name of theirs, and the one that older files have for it."""
    for new, old in RENAMED.items():
        if ".attentions." in name and f".{new}." in name:
            return f"{name}|{name.replace(f'.{new}.', f'.{old}.')}"
    return f"{name}|time_proj.W" if name == "time_proj.weight" else name


def _way(layers: nn.ModuleList, name: str, resampling: str) -> Iterator[Entry]:
    level = i = 0
    for k, layer in enumerate(layers):
        theirs = f"{name}_blocks.{level}"
        if isinstance(layer, UNetBlock):
            yield from _residual(layer.residual, f"{name}.{k}.residual", f"{theirs}.resnets.{i}")
            if isinstance(layer.attention, Attention | SpatialTransformer):
                yield from _attention(layer.attention, f"{name}.{k}.attention", f"{theirs}.attentions.{i}")
            i += 1
        else:
            yield from same(f"{name}.{k}.conv", f"{theirs}.{resampling}.0.conv")
            level, i = level + 1, 0


def _residual(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Entry]:
    return residual_block(block, ours, theirs, BLOCK, "conv_shortcut")


def _attention(attention: Attention | SpatialTransformer, ours: str, theirs: str) -> Iterator[Entry]:
    if isinstance(attention, SpatialTransformer):
        yield from spatial_transformer(attention, ours, theirs)
        return
    # Identity: diffusers leaves the norm of the middle's attention out under "scale_shift".
    if len(list(attention.norm.parameters())) > 0:
        yield from same(f"{ours}.norm", f"{theirs}.group_norm")
    for layer, names in (("qkv", ("to_q", "to_k", "to_v")), ("project", ("to_out.0",))):
        for part, make in (("weight", _kernels), ("bias", _biases)):
            yield Entry(f"{ours}.{layer}.{part}", tuple(either(f"{theirs}.{n}.{part}") for n in names), make)


def _kernels(*weights: Tensor) -> Tensor:
    return torch.cat([pointwise(weight) for weight in weights])


def _biases(*biases: Tensor) -> Tensor:
    return torch.cat(biases)
