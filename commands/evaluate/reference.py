"""What samples are compared with, and the floor: what held-out data give in the samples' place."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.evaluate.extract import extract
from scorefield.commands.evaluate.numbers import Side
from scorefield.commands.evaluate.statistics_files import read_statistics
from scorefield.commands.evaluate.store import shared_folder
from scorefield.commands.evaluate.subjects import Stored
from scorefield.commands.on_stderr import on_stderr
from scorefield.evaluation.features.base import Features
from scorefield.training.data import Dataset
from scorefield.training.distributed.ranks import Ranks

SEED = 0  # of the images that are chosen: the same for samples of any seed


@dataclass(frozen=True)
class Reference:
    """The reference of metrics.

    Args:
        side: its features or moments.
        described: what a report says of it.
        data: its images, if it has any.
        held_out: images of the other split, which give the floor.
        floor: their features.
        label: the classes of the images.
    """

    side: Side
    described: Mapping[str, Any]
    data: Dataset | None = None
    held_out: Dataset | None = None
    floor: Mapping[str, Tensor] = field(default_factory=dict)
    label: Tensor | None = None


def reference_of_file(path: Path, features: Features) -> Reference:
    """Statistics of a file as the reference.

    Raises:
        ValueError: if they are of other features.
    """
    side, recipe = read_statistics(path)
    theirs = recipe.get("features")
    if theirs is not None and recipe.get("features_sha256") != features.fingerprint:
        same = " by other weights, levels or shapes" if theirs == features.recipe else ""
        raise ValueError(
            f"expected statistics of the features {features.recipe}, got those of {theirs}{same} in {path}: give the "
            "--features and the --workdir that made them, or make others with --mode=statistics"
        )
    if theirs is None:
        on_stderr(f"{path} does not say which features made it: taken for {features.recipe}")
    named: dict[str, Any] = {key: recipe[key] for key in ("data", "split") if key in recipe}
    digest = hashlib.sha256()
    for name in sorted(side.moments):
        digest.update(side.moments[name].mean.tobytes() + side.moments[name].covariance.tobytes())
    named |= {"features_named": theirs is not None, "sha256": digest.hexdigest()}
    return Reference(side, {"file": path.name, "count": side.count, **named})


def reference_of_data(
    part: Dataset, of: int, other: Dataset, features: Features, floor: int, ranks: Ranks
) -> Reference | None:
    """A data set as the reference, on the first rank; None on the others, which compute their share.

    Args:
        part: the images that samples are compared with.
        of: how many images their split has.
        other: the other split, for the floor.
        features: what is computed of both.
        floor: images of the other split.
        ranks: the processes that share the work.
    """
    held_out = other.subset(floor, SEED)
    folder = shared_folder()
    found = extract(Stored(part), features, folder, ranks, f"features, {part.split}")
    rest = extract(Stored(held_out), features, folder, ranks, f"features, {other.split}")
    if found is None or rest is None:
        return None
    described = {
        "data": part.name, "split": part.split, "count": len(part), "of": of, "sha256": part.fingerprint,
    }  # fmt: skip
    label = None if part.label is None else torch.as_tensor(part.label)
    side = Side(len(part), found.features, {})
    return Reference(side, described, part, held_out, rest.features, label)
