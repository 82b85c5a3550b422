"""Your own data, --config.data.path=PATH.

Variants for images: folder (the default), archive (.zip, .tar, .tar.gz), shards (WebDataset's tars) and huggingface (a
folder or a name on the hub). For other data: array (.npy, .npz, raw) and toy (points in the plane). The variant ddpm is
folder with DDPM's path, prediction and network, which --mode=export --to=diffusers needs.

Settings that are None are chosen by the data when a run begins: see `preset`. Any of them can be set, as in
--config.data.size=64 --config.training.images=1000000.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from scorefield.configs.build import DATASETS, NETWORKS, PRECONDITIONS, SDES, spec
from scorefield.configs.defaults import check_variant, defaults

IMAGES = ("folder", "archive", "shards", "huggingface")
VARIANTS = (*IMAGES, "array", "toy", "ddpm")
SMALL = 10_000  # images, up to which the network is small
EPOCHS = 20


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "own")
    config = defaults()
    keywords = {"kind": "moons"} if variant == "toy" else {"path": ""}
    config.data = spec(DATASETS, "folder" if variant == "ddpm" else variant, **keywords)
    # Near the prior, an error in predicted noise grows by sigma / alpha in x0, and an error in v does not. With
    # little or low-dimensional data, predicted noise gives outliers.
    config.precondition = spec(PRECONDITIONS, "v")
    with config.ignore_type():
        config.training.ema_ramp = placeholder(float)
    if variant in ("array", "toy"):
        config.net = spec(NETWORKS, "mlp")
        return config
    config.net = spec(NETWORKS, "unet")
    if variant == "ddpm":
        config.sde = spec(SDES, "ddpm")
        config.precondition = spec(PRECONDITIONS, "time_conditioned", predicts="eps", scale=1000.0, shift=-1.0)
        config.net.update(frequencies="timesteps", smallest_group=1)
    with config.ignore_type():
        config.data.size = placeholder(int)
        config.net.update(width=placeholder(int), blocks=placeholder(int))
        config.net.update(multipliers=placeholder(tuple), attention=placeholder(tuple))
        config.training.update(images=placeholder(int), batch=placeholder(int))
        config.training.update(learning_rate=placeholder(float), warmup=placeholder(int))
    return config


def preset(count: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The settings of a first training on images, by their number and shape; keys are joined by dots.

    The levels of the network end at 8 pixels or less, where its attention is. Up to 10,000 images, it is one that two
    cores train on 32x32 pixels in minutes.
    """
    height, width = shape[-2:] if len(shape) == 3 else (1, 1)
    side, levels = (height, width), 1
    while (levels < 2 or min(side) > 8) and side[0] % 2 == side[1] % 2 == 0:
        side, levels = (side[0] // 2, side[1] // 2), levels + 1
    small = count <= SMALL
    return {
        "data.size": height if height == width else (height, width),
        "net.width": 32 if small else 64,
        "net.multipliers": (1,) + (2,) * (levels - 1),
        "net.blocks": 1 if small else 2,
        "net.attention": (levels - 1,),
        "training.images": min(max(EPOCHS * count, 40_000), 1_000_000),
        "training.batch": 32 if small else 128,
        "training.learning_rate": 2e-3 if small else 2e-4,
        "training.warmup": 1_000,
        "training.ema_ramp": 0.05,
    }


def fill(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that are None their values.

    Returns:
        The settings that got one.
    """
    chosen = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        if group in config and name in config[group] and config[group][name] is None and value is not None:
            with config.ignore_type():
                config[group][name] = chosen[key] = value
    return chosen
