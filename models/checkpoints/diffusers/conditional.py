"""`UNet2DConditionModel` of diffusers where `ADM` is the same network: its settings. Names are those of `native`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from scorefield.models.checkpoints.diffusers import native
from scorefield.models.checkpoints.diffusers.importer import SCHEDULER, path, size_of, wrapped_unet
from scorefield.models.checkpoints.diffusers.modules import import_diffusers
from scorefield.models.checkpoints.diffusers.native import FREQUENCIES, GROUPS
from scorefield.models.checkpoints.spec import CheckpointSpec, with_overrides
from scorefield.models.networks.adm import ADM

# The keywords of UNet2DConditionModel with what it takes them to be if they are left out.
CONDITIONAL: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}
# Where `ADM` has another value for something, or it does not matter to what the network computes.
EXPRESSED: dict[str, tuple[Any, ...]] = {
    "freq_shift": tuple(FREQUENCIES),
    "act_fn": ("silu", "swish"),
    "norm_num_groups": (GROUPS,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "mid_block_only_cross_attention": (None, False),
}
ANY = (
    "sample_size", "in_channels", "out_channels", "flip_sin_to_cos", "down_block_types", "up_block_types",
    "block_out_channels", "layers_per_block", "cross_attention_dim", "transformer_layers_per_block",
    "reverse_transformer_layers_per_block", "attention_head_dim", "use_linear_projection", "num_class_embeds",
    "upcast_attention", "time_embedding_dim", "addition_embed_type_num_heads", "only_cross_attention",
)  # fmt: skip
# One for each level there, and one for all of them here.
BY_LEVEL = ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "only_cross_attention")
KINDS = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}


def spec_of_config(config: Mapping[str, Any], **architecture: Any) -> CheckpointSpec:
    """How to build a `UNet2DConditionModel`; by diffusers itself where ours is not the same network.

    Args:
        config: its keywords (`CONDITIONAL`), as its config.json has them.
        architecture: its keywords in the place of those, and those of its scheduler (`SCHEDULER`).

    Raises:
        ValueError: for a keyword that they do not have, a path that is not known, or an architecture that only
            diffusers builds where that is not installed.
    """
    known = {key: value for key, value in config.items() if key in CONDITIONAL}
    values = with_overrides({**CONDITIONAL, **SCHEDULER, **known}, architecture)
    sde, precondition = path(values)
    complete = {key: value for key, value in values.items() if key in CONDITIONAL}
    further = {key: value for key, value in config.items() if key not in CONDITIONAL and value not in (None, False)}
    only_there = obstacle({**complete, **further})
    unlabelled = complete["num_class_embeds"] is None
    if only_there is None:
        ours = settings(complete)
        named = partial(native.entries, cosines_first=complete["flip_sin_to_cos"])
        shape = (ours["channels"], *size_of(complete))
        return CheckpointSpec(ADM, ours, named, precondition, sde, shape, levels=None, unlabelled=unlabelled)
    import_diffusers(f"A UNet2DConditionModel with {only_there}")
    shape = (min(complete["in_channels"], complete["out_channels"]), *size_of(complete))
    return wrapped_unet("UNet2DConditionModel", {**config, **complete}, precondition, sde, shape)


def obstacle(config: Mapping[str, Any]) -> str | None:
    """The first setting of a complete configuration that `ADM` does not have, None if it is the same network."""
    for key, value in config.items():
        if key not in ANY and value not in EXPRESSED.get(key, (CONDITIONAL.get(key),)):
            return f"{key}={value!r}"
    down, up, widths = (list(config[key]) for key in ("down_block_types", "up_block_types", "block_out_channels"))
    for kind in [*down, *up]:
        if kind not in KINDS and kind not in KINDS.values():
            return str(kind)
    if len(down) != len(widths) or up[::-1] != [KINDS.get(kind) for kind in down]:
        return "up_block_types that do not mirror down_block_types"
    for key in BY_LEVEL:
        if len({*_by_level(config, key)}) > 1:
            return f"{key}={config[key]!r}"
    if _one(config, "only_cross_attention"):
        return "only_cross_attention=True"
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        return f"time_embedding_dim={config['time_embedding_dim']}"
    if not config["out_channels"] <= config["in_channels"] and config["out_channels"] != 2 * config["in_channels"]:
        return f"out_channels={config['out_channels']} of {config['in_channels']}"
    pairs = _widths_and_heads(config)
    if any(width % heads for width, heads in pairs) or _heads(pairs) is None:
        return f"attention_head_dim={config['attention_head_dim']!r}"
    return None


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keywords of the `ADM` that is the same network as that of a complete configuration."""
    widths = config["block_out_channels"]
    variances = config["out_channels"] > config["in_channels"]
    channels = config["in_channels"] if variances else config["out_channels"]
    return {
        "channels": channels,
        "width": widths[0],
        "multipliers": tuple(width / widths[0] for width in widths),
        "blocks": _one(config, "layers_per_block"),
        "attention": tuple(i for i, kind in enumerate(config["down_block_types"]) if "Attn" in kind),
        **(_heads(_widths_and_heads(config)) or {}),
        "dropout": 0.0,
        "num_classes": config["num_class_embeds"],
        "frequencies": FREQUENCIES[config["freq_shift"]],
        "variances": variances,
        "smallest_group": 1,
        "scale_shift": config["resnet_time_scale_shift"] == "scale_shift",
        "resample_blocks": False,
        "context": _one(config, "cross_attention_dim"),
        "transformer_depth": _one(config, "transformer_layers_per_block"),
        "concat": config["in_channels"] - channels,
    }


def _by_level(config: Mapping[str, Any], key: str) -> list[Any]:
    value = config[key]
    return list(value) if isinstance(value, list | tuple) else [value] * len(config["block_out_channels"])


def _one(config: Mapping[str, Any], key: str) -> Any:
    return _by_level(config, key)[0]


def _widths_and_heads(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Of each attention. What is called attention_head_dim there is a number of heads."""
    heads, widths = _by_level(config, "attention_head_dim"), list(config["block_out_channels"])
    attends = ["Attn" in kind for kind in config["down_block_types"]]
    at_levels = [pair for pair, has in zip(zip(widths, heads, strict=True), attends, strict=True) if has]
    return [*at_levels, (widths[-1], heads[-1])]


def _heads(pairs: list[tuple[int, int]]) -> dict[str, Any] | None:
    """One number of heads for all, or one width of them (Stable Diffusion 2); None where it is neither."""
    if len({heads for _, heads in pairs}) == 1:
        return {"heads": pairs[0][1], "head_width": None}
    if len({width // heads for width, heads in pairs}) == 1:
        return {"head_width": pairs[0][0] // pairs[0][1]}
    return None
