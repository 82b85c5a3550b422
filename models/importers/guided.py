"""Checkpoints of guided-diffusion (Dhariwal and Nichol 2021): its `UNetModel`, ADM's network."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.adm import ADM
from models.importers.recipe import Entry, Recipe, cos_first, itself, levels_at, pointwise, same, taken
from models.layers import Attention, ResidualBlock
from models.precondition import Told
from models.unet import Block, UNet
from sde_lib import DiscreteVPSDE

BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "project": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
}
# The constructor's keywords and the schedule, by their own names; None: the weights tell.
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "in_channels": None,
    "model_channels": None,
    "out_channels": None,
    "num_res_blocks": None,
    "attention_resolutions": None,
    "channel_mult": None,
    "dropout": 0.0,
    "conv_resample": True,
    "num_classes": None,
    "num_heads": None,
    "num_head_channels": 64,
    "use_scale_shift_norm": None,
    "resblock_updown": None,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "cosine",
    "learn_sigma": None,
    "class_cond": None,
}


def recipe(state: Mapping[str, Tensor], **architecture: Any) -> Recipe:
    """How to build what a state dict of theirs holds; widths, levels, blocks, attention and classes are read off it.

    With blocks that resample themselves it is `ADM`, and otherwise (improved-diffusion's) a `UNet`.

    Args:
        state: their state dict.
        architecture: keywords of their `UNetModel` (`DEFAULTS`): `image_size`; `num_head_channels` where a head does
            not have 64, or `num_heads`; `use_new_attention_order`; and `noise_schedule`, "cosine" (their ImageNet-64)
            or "linear" (all others).

    Raises:
        ValueError: for a keyword that they do not have, or another schedule.
    """
    values = taken(DEFAULTS, architecture)
    if values["noise_schedule"] not in ("linear", "cosine"):
        raise ValueError(f"expected noise_schedule to be linear or cosine, got {values['noise_schedule']!r}")
    width = state["time_embed.0.weight"].shape[1]
    channels, size = state["input_blocks.0.0.weight"].shape[1], values["image_size"]
    levels = _levels(state)
    shifts = len(state["input_blocks.1.0.emb_layers.1.weight"]) > len(state["input_blocks.1.0.out_layers.0.weight"])
    by_head = values["num_heads"] is None or values["num_head_channels"] not in (None, -1, 64)
    attention = tuple(i for i, level in enumerate(levels) if f"{level[0]}.1.qkv.weight" in state)
    settings: dict[str, Any] = {
        "channels": channels,
        "width": width,
        "multipliers": tuple(len(state[f"{level[0]}.0.in_layers.2.weight"]) / width for level in levels),
        "blocks": len(levels[0]),
        "attention": attention,
        "dropout": values["dropout"],
        "frequencies": "open_timesteps",
        "smallest_group": 1,
        "num_classes": len(state["label_emb.weight"]) if "label_emb.weight" in state else None,
        "head_width": values["num_head_channels"] if by_head else None,
    }
    updown = "output_blocks.0.0.in_layers.0.weight" in state and not any(".op." in n or ".conv." in n for n in state)
    learned = len(state["out.2.weight"]) == 2 * channels
    if updown and shifts:
        network: type[nn.Module] = ADM
        settings |= {"variances": learned} | ({} if by_head else {"heads": values["num_heads"]})
    elif not learned and not updown:
        network = UNet
        settings |= {"scale_shift": shifts, "eps": 1e-5, "symmetric_padding": True}
        settings |= {} if by_head else {"heads": values["num_heads"]}
    else:
        raise ValueError("expected resblock_updown with use_scale_shift_norm, or neither of it nor learn_sigma")
    given = values["attention_resolutions"]
    if given is not None and levels_at(size, [size // int(rate) for rate in given], len(levels)) != attention:
        raise ValueError(f"expected attention_resolutions at levels {attention}, as the weights have it, got {given}")
    sde = DiscreteVPSDE(values["noise_schedule"], values["diffusion_steps"])
    told = Told(sde, "eps", "time", float(sde.steps), -1.0)
    new_order = bool(values["use_new_attention_order"])
    return Recipe(network, settings, lambda net: _entries(net, new_order), told, sde, (channels, size, size))


def _levels(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The input blocks of each level, those that resample left out: where they are is told by the way up."""
    names = [
        f"output_blocks.{i}" for i in range(len({n.split(".")[1] for n in state if n.startswith("output_blocks.")}))
    ]
    blocks = next((i for i, name in enumerate(names) if _goes_up(state, name)), len(names) - 1)
    return [
        [f"input_blocks.{1 + level * (blocks + 1) + i}" for i in range(blocks)]
        for level in range(len(names) // (blocks + 1))
    ]


def _goes_up(state: Mapping[str, Tensor], block: str) -> bool:
    return any(f"{block}.{i}.{name}.weight" in state for i in (1, 2) for name in ("conv", "in_layers.0"))


def _entries(network: ADM | UNet, new_order: bool) -> Iterator[Entry]:
    yield Entry("embed.perceptron.0.weight", ("time_embed.0.weight",), cos_first)
    yield Entry("embed.perceptron.0.bias", ("time_embed.0.bias",), itself)
    yield from same("embed.perceptron.2", "time_embed.2")
    if network.embed.labels is not None:
        # They have no class for "unknown": ours is then zero.
        yield Entry("embed.labels.weight", ("label_emb.weight",), lambda w: torch.cat([w, torch.zeros_like(w[:1])]))
    yield from same("stem", "input_blocks.0.0")
    for k, layer in enumerate(network.down):
        if isinstance(layer, Block):
            yield from _block(layer, f"down.{k}", f"input_blocks.{k + 1}", new_order)
        else:
            yield from _resampler(layer, f"down.{k}", f"input_blocks.{k + 1}.0")
    yield from _residual(network.middle_in, "middle_in", "middle_block.0")
    assert isinstance(network.middle_attention, Attention)
    yield from _attention(network.middle_attention, "middle_attention", "middle_block.1", new_order)
    yield from _residual(network.middle_out, "middle_out", "middle_block.2")
    n = -1
    for k, layer in enumerate(network.up):
        if isinstance(layer, Block):
            n += 1
            last = 0 if layer.attention is None else 1
            yield from _block(layer, f"up.{k}", f"output_blocks.{n}", new_order)
        else:
            yield from _resampler(layer, f"up.{k}", f"output_blocks.{n}.{last + 1}")
    yield from same("norm", "out.0")
    yield from same("head", "out.2")


def _block(block: Block, ours: str, theirs: str, new_order: bool) -> Iterator[Entry]:
    yield from _residual(block.residual, f"{ours}.residual", f"{theirs}.0")
    if block.attention is not None:
        yield from _attention(block.attention, f"{ours}.attention", f"{theirs}.1", new_order)


def _resampler(layer: nn.Module, ours: str, theirs: str) -> Iterator[Entry]:
    if isinstance(layer, ResidualBlock):
        yield from _residual(layer, ours, theirs)
    else:
        yield from same(f"{ours}.conv", f"{theirs}.{'op' if ours.startswith('down') else 'conv'}")


def _residual(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Entry]:
    for here, there in BLOCK.items():
        yield from same(f"{ours}.{here}", f"{theirs}.{there}")
    if isinstance(block.shortcut, nn.Conv2d):
        yield from same(f"{ours}.shortcut", f"{theirs}.skip_connection")


def _attention(attention: Attention, ours: str, theirs: str, new_order: bool) -> Iterator[Entry]:
    ordered = itself if new_order else _by_head(attention.heads)
    yield from same(f"{ours}.norm", f"{theirs}.norm")
    yield Entry(f"{ours}.qkv.weight", (f"{theirs}.qkv.weight",), lambda w: pointwise(ordered(w)))
    yield Entry(f"{ours}.qkv.bias", (f"{theirs}.qkv.bias",), ordered)
    yield Entry(f"{ours}.project.weight", (f"{theirs}.proj_out.weight",), pointwise)
    yield Entry(f"{ours}.project.bias", (f"{theirs}.proj_out.bias",), itself)


def _by_head(heads: int) -> Callable[[Tensor], Tensor]:
    """Rows ordered by head and then q, k, v, for ours by q, k, v and then head."""
    return lambda rows: rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
