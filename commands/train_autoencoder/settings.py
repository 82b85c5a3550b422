"""Checks of an autoencoder's configuration and of its data, before any work."""

import math
from pathlib import Path

import ml_collections

from scorefield.commands.autoencoder_files import has_autoencoder
from scorefield.commands.training.settings import Rule, check, rules_of
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.training.data import Dataset, layout


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, with the setting, what is expected and its value, if one is out of range."""
    settings, loss = config.training, config.loss
    rules: list[Rule] = [
        ("evaluate_images", settings.evaluate_images >= 1, "at least 1"),
        ("measure_images", settings.measure_images >= 2, "at least 2"),
    ]
    check(config, [*rules_of(settings), *rules])
    for key, valid, expected in [
        ("norm", loss.norm in ("l1", "l2"), "l1 or l2"),
        *((key, 0 <= loss[key] < math.inf, "0 or more") for key in ("perceptual_weight", "kl", "codebook")),
        *((key, 0 <= loss[key] < math.inf, "0 or more") for key in ("adversarial", "largest", "start", "ramp")),
        *((key, loss[key] >= 1, "at least 1") for key in ("discriminator_width", "discriminator_layers")),
    ]:
        if not valid:
            raise ValueError(f"expected loss.{key} to be {expected}, got {loss[key]}")


def check_place(workdir: Path) -> None:
    """Refuse a directory with an autoencoder that was not trained there, which would be replaced.

    Raises:
        ValueError: if there is one.
    """
    if has_autoencoder(workdir) and not (workdir / "config.json").is_file():
        raise ValueError(
            f"expected --workdir without an autoencoder of somebody else's, got {workdir}, where one was imported: "
            "choose another"
        )


def check_images(dataset: Dataset) -> None:
    """Refuse what is no image.

    Raises:
        ValueError: for anything but items (C, H, W).
    """
    if len(dataset.shape) != 3:
        remedy = layout.advice(dataset.shape) or "other data needs no autoencoder: train on it with --mode=train"
        raise ValueError(
            f"expected images (C, H, W) for an autoencoder, got items of shape {dataset.shape} in {dataset.name}: "
            f"{remedy}"
        )


def check_sides(dataset: Dataset, autoencoder: ImageAutoencoder) -> None:
    """Refuse images whose sides the autoencoder does not divide.

    Raises:
        ValueError: naming the next sizes that it takes.
    """
    factor, sides = autoencoder.factor, dataset.shape[1:]
    if any(side % factor for side in sides):
        larger = " x ".join(str(math.ceil(side / factor) * factor) for side in sides)
        raise ValueError(
            f"expected images whose sides divide by {factor}, as this autoencoder makes codes of {factor}x{factor} "
            f"pixels, got {' x '.join(map(str, sides))} in {dataset.name}: make them {larger} (--config.data.size), or "
            "take fewer net.multipliers"
        )
