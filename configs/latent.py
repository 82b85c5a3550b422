"""Diffusion in the codes of an autoencoder (Rombach et al. 2022), small enough for two cores.

Every variant needs --config.autoencoder=DIRECTORY, an autoencoder of --mode=train_autoencoder or --mode=import.

fashion_f4 (the default), fashion_f2 and mnist_f4 are unconditional; with --config.training.labels=true they know the
class. fashion_super_resolution and fashion_inpainting see a small image, or a masked one. canvas_text, canvas_layout
and canvas_map are two digits on a canvas, from a caption, from boxes, or from a map of classes.

The published models of Rombach et al. 2022 are named as in `configs.latent_papers`: celeba_hq, ffhq, bedrooms,
churches, cin256, cin256_v2, text2img256, txt2img_large, layout, semantic, bsr_sr, inpainting_big. Their data is a
folder of images, --config.data.path=PATH.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from scorefield.configs.build import (
    CONDITIONERS,
    DATASETS,
    NETWORKS,
    PRECONDITIONS,
    SDES,
    SOLVERS,
    TIMES,
    WEIGHTINGS,
    spec,
)  # fmt: skip
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.latent_papers import LATENT_PAPERS, latent_diffusion


def get_config(variant: str = "fashion_f4") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "latent")
    config = defaults()
    config.transform.dequantise = False
    if variant in LATENT_PAPERS:
        _published(config, variant)
        return config
    config.sde = spec(SDES, "cosine")
    config.precondition = spec(PRECONDITIONS, "v")
    config.training.update(
        images=115_000, batch=32, learning_rate=2e-3, warmup=5_000, decay=True, ema=0.995,
        sample_every=100_000, checkpoint_every=50_000,
    )  # fmt: skip
    config.training.times = spec(TIMES, "stratified")
    config.training.sample_evaluations = 60
    # The same network gives a Frechet distance of 14 with noise in the solver, and of 21 without.
    config.sampling.solver, config.sampling.steps = spec(SOLVERS, "stochastic_dpm"), 50
    OURS[variant](config)
    return config


def _fashion(config: ml_collections.ConfigDict) -> None:
    config.data = spec(DATASETS, "fashion_mnist", size=32)
    config.net = spec(NETWORKS, "unet", width=64, multipliers=(1, 2), blocks=1, attention=(1,))


def _fashion_f2(config: ml_collections.ConfigDict) -> None:
    config.data = spec(DATASETS, "fashion_mnist")
    config.net = spec(NETWORKS, "unet", width=48, multipliers=(1, 2), blocks=1, attention=(1,))


def _mnist(config: ml_collections.ConfigDict) -> None:
    _fashion(config)
    config.data = spec(DATASETS, "mnist", size=32)


def _super_resolution(config: ml_collections.ConfigDict) -> None:
    _fashion(config)
    config.conditioner = spec(CONDITIONERS, "low", image_channels=1)
    config.training.codes = "online"  # the conditioning is made of the images


def _inpainting(config: ml_collections.ConfigDict) -> None:
    _fashion(config)
    config.conditioner = spec(CONDITIONERS, "masked")
    config.training.codes = "online"


def _canvas(config: ml_collections.ConfigDict) -> None:
    config.data = spec(DATASETS, "canvas")
    config.net = spec(
        NETWORKS, "adm", width=32, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, transformer_depth=1,
        dropout=0.0, resample_blocks=False, positions=True,
    )  # fmt: skip
    config.training.images = 150_000
    # The error in v. That in eps hardly counts the levels of much noise, where it is decided which digit comes.
    config.training.weight = spec(WEIGHTINGS, "edm", sigma_data=1.0)


def _text(config: ml_collections.ConfigDict) -> None:
    _canvas(config)
    config.conditioner = spec(CONDITIONERS, "text", width=64, layers=2, heads=4, head_width=16, length=12, masked=True)


def _layout(config: ml_collections.ConfigDict) -> None:
    _canvas(config)
    config.conditioner = spec(CONDITIONERS, "boxes")


def _map(config: ml_collections.ConfigDict) -> None:
    _canvas(config)
    config.net = spec(NETWORKS, "unet", width=64, multipliers=(1, 2), blocks=1, attention=(1,))
    config.conditioner = spec(CONDITIONERS, "map")


# The conditioner of a published model, where it has one.
CONDITIONED: dict[str, dict[str, Any]] = {
    "cin256": {"name": "class_tokens", "width": 512},
    "cin256_v2": {"name": "class_tokens", "width": 512},
    "text2img256": {"name": "text", "width": 640, "layers": 32, "vocabulary": 30_522},
    "txt2img_large": {"name": "text", "width": 1280, "layers": 32, "vocabulary": 30_522},
    "layout": {
        "name": "boxes", "width": 512, "layers": 16, "vocabulary": 8192, "sections": 90, "crop": True, "masked": False,
    },
    "semantic": {"name": "map", "classes": 182, "halvings": 2, "out": 3},
    "bsr_sr": {"name": "low", "image_channels": 3},
    "inpainting_big": {"name": "masked"},
}  # fmt: skip


def _published(config: ml_collections.ConfigDict, name: str) -> None:
    config.data = spec(DATASETS, "folder", path="", size=256)
    latent_diffusion(config, name)
    config.training.label_dropout = 0.1 if name in ("cin256_v2", "txt2img_large") else 0.0
    config.training.labels = name in ("cin256", "cin256_v2")
    if name in CONDITIONED:
        config.conditioner = spec(CONDITIONERS, CONDITIONED[name])
    if name in ("bsr_sr", "inpainting_big"):
        config.training.codes = "online"


OURS: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    "fashion_f4": _fashion,
    "fashion_f2": _fashion_f2,
    "mnist_f4": _mnist,
    "fashion_super_resolution": _super_resolution,
    "fashion_inpainting": _inpainting,
    "canvas_text": _text,
    "canvas_layout": _layout,
    "canvas_map": _map,
}
VARIANTS = (*OURS, *LATENT_PAPERS)
