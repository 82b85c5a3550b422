"""Checkpoints of ddim (Song et al. 2021, "Denoising Diffusion Implicit Models"): its `Model`, DDPM's U-Net."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from scorefield.models.checkpoints.spec import (
    CheckpointSpec,
    Entry,
    check_attention,
    check_inferred,
    joined,
    levels_at,
    residual_block,
    same,
    with_overrides,
)
from scorefield.models.hyperparameters import settings_of
from scorefield.models.layers.blocks import ResidualBlock, UNetBlock
from scorefield.models.networks.unet import UNet
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import DiscreteVPSDE

BLOCK = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "project": "temb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
}
# What their configurations hold, by their own names; None: the weights tell.
DEFAULTS: dict[str, Any] = {
    "image_size": None,
    "in_channels": None,
    "out_ch": None,
    "ch": None,
    "ch_mult": None,
    "num_res_blocks": None,
    "attn_resolutions": None,
    "dropout": 0.1,
    "resamp_with_conv": True,
    "type": "simple",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_diffusion_timesteps": 1000,
}
# The published ones, by their multipliers: CIFAR-10, CelebA, and LSUN and CelebA-HQ.
SIZES: dict[tuple[float, ...], int] = {(1, 2, 2, 2): 32, (1, 2, 2, 2, 4): 64, (1, 1, 2, 2, 4, 4): 256}


def spec_of(state: Mapping[str, Tensor], **architecture: Any) -> CheckpointSpec:
    """How to build what a state dict of theirs holds; widths, levels, blocks and attention are read off it.

    Args:
        state: their state dict.
        architecture: values of their configuration by their own names (`DEFAULTS`): `image_size` where the levels are
            none of the published networks'.

    Raises:
        ValueError: for a name that they do not have, a value that the weights contradict, or betas other than linear.
    """
    values = with_overrides(DEFAULTS, architecture)
    if values["beta_schedule"] != "linear":
        raise ValueError(f"expected beta_schedule to be linear, got {values['beta_schedule']!r}")
    betas = (values["num_diffusion_timesteps"], values["beta_start"], values["beta_end"])
    sde = DiscreteVPSDE("linear", *betas)
    width, channels = state["conv_in.weight"].shape[:2]
    levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("down."))
    blocks = [f"down.{level}.block.0.conv1.weight" for level in range(levels)]
    multipliers = tuple(len(state[name]) / width for name in blocks)
    found = {
        "in_channels": channels,
        "out_ch": channels,
        "ch": width,
        "ch_mult": multipliers,
        "num_res_blocks": sum(name.startswith("down.0.block.") and name.endswith("conv1.weight") for name in state),
    }
    check_inferred(found, values)
    if values["type"] not in ("simple", "bayesian"):
        raise ValueError(f"expected type to be simple or bayesian, got {values['type']!r}")
    settings = {
        "channels": channels,
        "width": width,
        "multipliers": multipliers,
        "blocks": found["num_res_blocks"],
        "attention": tuple(i for i in range(levels) if f"down.{i}.attn.0.q.weight" in state),
        "dropout": values["dropout"],
        "frequencies": "timesteps",
        "smallest_group": 1,
        "resample_conv": values["resamp_with_conv"],
    }
    size = values["image_size"] or SIZES.get(multipliers)
    if size is None:
        raise ValueError(f"expected image_size, which no published network with multipliers {multipliers} tells")
    if (sizes := values["attn_resolutions"]) is not None:
        check_attention("attn_resolutions", sizes, settings["attention"], levels_at(size, sizes, levels))
    precondition = TimeConditioned(sde, "eps", "time", float(sde.steps), -1.0)
    return CheckpointSpec(UNet, settings, _entries, precondition, sde, (channels, size, size), extra=("logvar",))


def _entries(network: UNet) -> Iterator[Entry]:
    yield from same("embed.perceptron.0", "temb.dense.0")
    yield from same("embed.perceptron.2", "temb.dense.1")
    yield from same("stem", "conv_in")
    yield from _way(network.down, "down", lambda level: level, "downsample")
    yield from _residual(network.middle_in, "middle_in", "mid.block_1")
    yield from _attention("middle_attention", "mid.attn_1")
    yield from _residual(network.middle_out, "middle_out", "mid.block_2")
    deepest = len(settings_of(network)["multipliers"]) - 1
    yield from _way(network.up, "up", lambda level: deepest - level, "upsample")
    yield from same("norm", "norm_out")
    yield from same("head", "conv_out")


def _way(layers: nn.ModuleList, name: str, level_of: Any, resampling: str) -> Iterator[Entry]:
    level = i = 0
    for k, layer in enumerate(layers):
        theirs = f"{name}.{level_of(level)}"
        if isinstance(layer, UNetBlock):
            yield from _residual(layer.residual, f"{name}.{k}.residual", f"{theirs}.block.{i}")
            if layer.attention is not None:
                yield from _attention(f"{name}.{k}.attention", f"{theirs}.attn.{i}")
            i += 1
        else:
            if hasattr(layer, "conv"):
                yield from same(f"{name}.{k}.conv", f"{theirs}.{resampling}.conv")
            level, i = level + 1, 0


def _residual(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Entry]:
    return residual_block(block, ours, theirs, BLOCK, "nin_shortcut")


def _attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from same(f"{ours}.norm", f"{theirs}.norm")
    yield from joined(f"{ours}.qkv", tuple(f"{theirs}.{name}" for name in "qkv"))
    yield from same(f"{ours}.project", f"{theirs}.proj_out")
