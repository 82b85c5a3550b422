"""Checks of the training settings before any work."""

import math

import ml_collections

from scorefield.commands.training.settings import SNAPSHOTS, Rule, check, one_of, rules_of
from scorefield.training.objectives.dsm import NORMS


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, with the setting, what is expected and its value, if one is out of range."""
    # What is None is chosen by the data afterwards.
    settings = ml_collections.ConfigDict({key: 1 if value is None else value for key, value in config.training.items()})
    lengths = [f"{length:g}" for length in settings.snapshot_lengths]
    rules: list[Rule] = [
        ("elbo_steps", settings.elbo_steps == 0 or settings.elbo_steps >= 2, "0, or 2 or more"),
        ("second_order", 0 <= settings.second_order < math.inf, "0 or more"),
        (
            "snapshot_lengths",
            settings.snapshot_every == 0 or 0 < len(lengths) == len(set(lengths)),
            "one or more, all different",
        ),
        ("label_dropout", 0 <= settings.label_dropout < 1, "within [0, 1)"),
        one_of(settings, "optimizer", ("adam", "muon")),
        ("momentum", 0 <= settings.momentum < 1, "within [0, 1)"),
        one_of(settings, "sharding", ("ddp", "fsdp")),
        one_of(settings, "loss", ("dsm", "elbo")),
        one_of(settings, "norm", NORMS if settings.loss == "dsm" and not settings.second_order else ("l2",)),
        one_of(settings, "codes", ("cached", "online")),
        one_of(settings, "snapshot_dtype", SNAPSHOTS),
    ]
    if settings.second_order:
        reason = "with training.second_order, which differentiates the network twice"
        rules += [
            ("compile", not settings.compile, f"False {reason}"),
            ("sharding", settings.sharding == "ddp", f"ddp {reason}"),
        ]
    check(config, [*rules_of(settings), *rules])
