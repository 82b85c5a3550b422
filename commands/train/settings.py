"""Checks of the training settings before any work."""

import math

import ml_collections
import torch

SNAPSHOTS = {"float16": torch.float16, "float32": torch.float32}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, with the setting, what is expected and its value, if one is out of range."""
    low, high, seed = config.transform.low, config.transform.high, config.seed
    # What is None is chosen by the data afterwards.
    settings = ml_collections.ConfigDict({key: 1 if value is None else value for key, value in config.training.items()})
    lengths = [f"{length:g}" for length in settings.snapshot_lengths]
    rules = [
        ("images", settings.images >= 1, "at least 1"),
        ("batch", settings.batch >= 1, "at least 1"),
        ("learning_rate", 0 < settings.learning_rate < math.inf, "a positive number"),
        (
            "betas",
            len(settings.betas) == 2 and all(0 <= beta < 1 for beta in settings.betas),
            "two numbers within [0, 1)",
        ),
        ("adam_eps", 0 < settings.adam_eps < math.inf, "a positive number"),
        ("weight_decay", 0 <= settings.weight_decay < math.inf, "0 or more"),
        ("clip", settings.clip >= 0, "0 or more"),
        ("warmup", settings.warmup >= 0, "0 or more"),
        ("accumulate", settings.accumulate >= 1, "at least 1"),
        ("elbo_steps", settings.elbo_steps == 0 or settings.elbo_steps >= 2, "0, or 2 or more"),
        ("second_order", 0 <= settings.second_order < math.inf, "0 or more"),
        (
            "snapshot_lengths",
            settings.snapshot_every == 0 or 0 < len(lengths) == len(set(lengths)),
            "one or more, all different",
        ),
        ("keep", settings.keep >= 1, "at least 1"),
        ("log_every", settings.log_every >= 1, "at least 1"),
        ("label_dropout", 0 <= settings.label_dropout < 1, "within [0, 1)"),
    ]
    rules += [
        (key, settings[key] >= 0, "0 or more")
        for key in settings
        if key.endswith(("_every", "_seconds")) and key != "log_every"
    ]
    for key, choices in {
        "on_full_disk": ("stop", "continue"),
        "sharding": ("ddp", "fsdp"),
        "loss": ("dsm", "elbo"),
        "codes": ("cached", "online"),
        "precision": PRECISIONS,
        "snapshot_dtype": SNAPSHOTS,
    }.items():
        rules.append((key, settings[key] in choices, " or ".join(choices)))
    if settings.second_order:
        reason = "with training.second_order, which differentiates the network twice"
        rules += [
            ("compile", not settings.compile, f"False {reason}"),
            ("sharding", settings.sharding == "ddp", f"ddp {reason}"),
        ]
    for key, valid, expected in rules:
        if not valid:
            raise ValueError(f"expected training.{key} to be {expected}, got {settings[key]}")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"expected transform.low to be less than transform.high, got {low} and {high}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected seed to be within [0, {2**32}), got {seed}")
