"""Checks of the settings that every training has."""

import math
from collections.abc import Iterable
from typing import Any

import ml_collections
import torch

SNAPSHOTS = {"float16": torch.float16, "float32": torch.float32}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Rule = tuple[str, bool, str]  # a setting of training, whether it is right, and what is expected


def rules_of(settings: Any) -> list[Rule]:
    """The rules of the settings that every training has."""
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
        ("keep", settings.keep >= 1, "at least 1"),
        ("log_every", settings.log_every >= 1, "at least 1"),
    ]
    rules += [
        (key, settings[key] >= 0, "0 or more")
        for key in settings
        if key.endswith(("_every", "_seconds")) and key != "log_every"
    ]
    choices = {"on_full_disk": ("stop", "continue"), "precision": tuple(PRECISIONS)}
    return rules + [one_of(settings, key, several) for key, several in choices.items()]


def one_of(settings: Any, key: str, choices: Iterable[str]) -> Rule:
    """The rule that a setting is one of several words."""
    return key, settings[key] in choices, " or ".join(choices)


def check(config: ml_collections.ConfigDict, rules: Iterable[Rule]) -> None:
    """Raises ValueError, with the setting, what is expected and its value, for the first rule that does not hold.

    The range of the model's values and the seed are checked after the rules.
    """
    low, high, seed = config.transform.low, config.transform.high, config.seed
    for key, valid, expected in rules:
        if not valid:
            raise ValueError(f"expected training.{key} to be {expected}, got {config.training[key]}")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"expected transform.low to be less than transform.high, got {low} and {high}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected seed to be within [0, {2**32}), got {seed}")
