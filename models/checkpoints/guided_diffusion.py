"""Checkpoints of guided-diffusion (Dhariwal and Nichol 2021): its `UNetModel`, ADM's network."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from scorefield.models.checkpoints.spec import (
    CheckpointSpec,
    Entry,
    check_attention,
    check_inferred,
    cos_first,
    itself,
    levels_at,
    pointwise,
    residual_block,
    same,
    spatial_transformer,
    with_overrides,
    with_unknown,
)
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.layers.transformer import SpatialTransformer
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.unet import UNet
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import DiscreteVPSDE

BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "project": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
}
# The constructor's keywords and the schedule, by their own names; None: the weights tell, or it must be said.
DEFAULTS: dict[str, Any] = {
    "image_size": None,
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
    "num_head_channels": None,
    "use_scale_shift_norm": None,
    "resblock_updown": None,
    "use_new_attention_order": None,
    "diffusion_steps": 1000,
    "noise_schedule": None,
    "rescale_timesteps": False,
    "learn_sigma": None,
    "class_cond": None,
}
# What the weights of the released networks do not tell, by width, multipliers and blocks (their README).
LINEAR = {"noise_schedule": "linear", "num_head_channels": 64, "use_new_attention_order": False}
RELEASED: dict[tuple[int, tuple[float, ...], int], dict[str, Any]] = {
    (192, (1, 2, 3, 4), 3): {
        "image_size": 64,
        "noise_schedule": "cosine",
        "num_head_channels": 64,
        "use_new_attention_order": True,
    },
    (256, (1, 1, 2, 3, 4), 2): {**LINEAR, "image_size": 128, "num_head_channels": None, "num_heads": 4},
    (256, (1, 1, 2, 2, 4, 4), 2): {**LINEAR, "image_size": 256},
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2): {**LINEAR, "image_size": 512},
}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds; widths, levels, blocks, attention and classes are read off it.

    With blocks that resample themselves it is `ADM`, and otherwise (improved-diffusion's) a `UNet`.

    Args:
        state: their state dict.
        architecture: keywords of their `UNetModel` and diffusion (`DEFAULTS`). For others than the released networks
            `image_size`, `noise_schedule`, and `num_heads` or `num_head_channels` must be said; and
            `use_new_attention_order`, `diffusion_steps` and `rescale_timesteps` where they are not their defaults.

    Raises:
        ValueError: for a keyword that they do not have, one that the weights contradict, or one that is missing.
    """
    width, levels = state["time_embed.0.weight"].shape[1], levels_of(state)
    multipliers = tuple(len(state[f"{level[0]}.0.in_layers.2.weight"]) / width for level in levels)
    released = RELEASED.get((width, multipliers, len(levels[0])), {})
    if "num_heads" in architecture or "num_head_channels" in architecture:
        released = {key: value for key, value in released.items() if not key.startswith("num_head")}
    values = with_overrides({**DEFAULTS, **released}, architecture)
    channels, size = state["input_blocks.0.0.weight"].shape[1], values["image_size"]
    shifts = len(state["input_blocks.1.0.emb_layers.1.weight"]) > len(state["input_blocks.1.0.out_layers.0.weight"])
    attention = tuple(i for i, level in enumerate(levels) if f"{level[0]}.1.qkv.weight" in state)
    updown = not any(".op." in name or (".conv." in name and name.startswith("output")) for name in state)
    learned = len(state["out.2.weight"]) == 2 * channels
    classes = len(state["label_emb.weight"]) if "label_emb.weight" in state else None
    check_inferred(
        {
            "in_channels": channels,
            "model_channels": width,
            "out_channels": channels * (1 + learned),
            "num_res_blocks": len(levels[0]),
            "channel_mult": multipliers,
            "num_classes": classes,
            "use_scale_shift_norm": shifts,
            "resblock_updown": updown if len(levels) > 1 else None,
            "learn_sigma": learned,
            "class_cond": classes is not None,
        },
        values,
    )
    _refuse_missing(values)
    # Theirs: a width of heads counts before their number, unless it is -1.
    head_width = None if values["num_head_channels"] in (None, -1) else values["num_head_channels"]
    settings: dict[str, Any] = {
        "channels": channels,
        "width": width,
        "multipliers": multipliers,
        "blocks": len(levels[0]),
        "attention": attention,
        "dropout": values["dropout"],
        "frequencies": "open_timesteps",
        "smallest_group": 1,
        "num_classes": classes,
        "head_width": head_width,
        "heads": values["num_heads"] or 1,
        "variances": learned,
    }
    network: type[nn.Module] = ADM if updown and shifts else UNet
    if updown and not shifts:
        raise ValueError("expected use_scale_shift_norm with resblock_updown, as in all released networks")
    if network is UNet:
        settings |= {"scale_shift": shifts, "eps": 1e-5, "symmetric_padding": True}
    if (rates := values["attention_resolutions"]) is not None:
        at = levels_at(size, [size // int(rate) for rate in rates], len(levels))
        check_attention("attention_resolutions", rates, attention, at)
    new_order = bool(values["use_new_attention_order"])
    sde = _path(values)
    # Rescaled, timesteps run to 1000, however many there are.
    largest = 1000.0 if values["rescale_timesteps"] else float(sde.steps)
    return CheckpointSpec(
        network,
        settings,
        lambda net: entries(net, new_order),
        TimeConditioned(sde, "eps", "time", largest, -largest / sde.steps),
        sde,
        (channels, size, size),
        # Their classes were never left out in training.
        unlabelled=classes is None,
    )


def _path(values: Mapping[str, Any]) -> DiscreteVPSDE:
    steps, schedule = values["diffusion_steps"], values["noise_schedule"]
    if schedule not in ("linear", "cosine"):
        raise ValueError(f"expected noise_schedule to be linear or cosine, got {schedule!r}")
    # Their linear betas cover the same noise in any number of steps.
    return DiscreteVPSDE(schedule, steps, 0.1 / steps, 20.0 / steps)


def _refuse_missing(values: Mapping[str, Any]) -> None:
    for key in ("image_size", "noise_schedule"):
        if values[key] is None:
            raise ValueError(f"expected {key}, which the weights do not tell: these are none of the released networks'")
    if values["num_heads"] is None and values["num_head_channels"] in (None, -1):
        raise ValueError("expected num_heads or num_head_channels, which the weights do not tell")


def levels_of(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The input blocks of each level, without the ones that resample, which the way up shows."""
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


def entries(network: ADM | UNet, new_order: bool) -> Iterator[Entry]:
    """What each of our tensors is made of; `new_order` is their `use_new_attention_order`."""
    yield Entry("embed.perceptron.0.weight", ("time_embed.0.weight",), cos_first)
    yield Entry("embed.perceptron.0.bias", ("time_embed.0.bias",), itself)
    yield from same("embed.perceptron.2", "time_embed.2")
    if network.embed.labels is not None:
        # They have no class for "unknown": ours is then zero.
        yield Entry("embed.labels.weight", ("label_emb.weight",), with_unknown)
    yield from same("stem", "input_blocks.0.0")
    for k, layer in enumerate(network.down):
        if isinstance(layer, UNetBlock):
            yield from _block(layer, f"down.{k}", f"input_blocks.{k + 1}", new_order)
        else:
            yield from _resampler(layer, f"down.{k}", f"input_blocks.{k + 1}.0")
    yield from _residual(network.middle_in, "middle_in", "middle_block.0")
    assert isinstance(network.middle_attention, Attention | SpatialTransformer)
    yield from _attention(network.middle_attention, "middle_attention", "middle_block.1", new_order)
    yield from _residual(network.middle_out, "middle_out", "middle_block.2")
    n = -1
    for k, layer in enumerate(network.up):
        if isinstance(layer, UNetBlock):
            n += 1
            last = 0 if layer.attention is None else 1
            yield from _block(layer, f"up.{k}", f"output_blocks.{n}", new_order)
        else:
            yield from _resampler(layer, f"up.{k}", f"output_blocks.{n}.{last + 1}")
    yield from same("norm", "out.0")
    yield from same("head", "out.2")


def _block(block: UNetBlock, ours: str, theirs: str, new_order: bool) -> Iterator[Entry]:
    yield from _residual(block.residual, f"{ours}.residual", f"{theirs}.0")
    if block.attention is not None:
        yield from _attention(block.attention, f"{ours}.attention", f"{theirs}.1", new_order)


def _resampler(layer: nn.Module, ours: str, theirs: str) -> Iterator[Entry]:
    if isinstance(layer, ResidualBlock):
        yield from _residual(layer, ours, theirs)
    else:
        yield from same(f"{ours}.conv", f"{theirs}.{'op' if ours.startswith('down') else 'conv'}")


def _residual(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Entry]:
    return residual_block(block, ours, theirs, BLOCK, "skip_connection")


def _attention(attention: Attention | SpatialTransformer, ours: str, theirs: str, new_order: bool) -> Iterator[Entry]:
    if isinstance(attention, SpatialTransformer):
        yield from spatial_transformer(attention, ours, theirs)
        return
    ordered = itself if new_order else _by_head(attention.heads)
    yield from same(f"{ours}.norm", f"{theirs}.norm")
    yield Entry(f"{ours}.qkv.weight", (f"{theirs}.qkv.weight",), lambda w: pointwise(ordered(w)))
    yield Entry(f"{ours}.qkv.bias", (f"{theirs}.qkv.bias",), ordered)
    yield Entry(f"{ours}.project.weight", (f"{theirs}.proj_out.weight",), pointwise)
    yield Entry(f"{ours}.project.bias", (f"{theirs}.proj_out.bias",), itself)


def _by_head(heads: int) -> Callable[[Tensor], Tensor]:
    """Rows ordered by head and then q, k, v, for ours by q, k, v and then head."""
    return lambda rows: rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
