"""The features of samples: batch by batch, kept, and shared by the ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.evaluate.store import parts_of
from scorefield.commands.evaluate.subjects import Subject, part_name
from scorefield.commands.parts import Arrays
from scorefield.commands.progress_bar import Bar, progress_bar
from scorefield.evaluation.features.base import Features
from scorefield.training.distributed.ranks import Ranks

FACTS = ("nfe", "seconds", "label")  # of a part, beside its features


@dataclass(frozen=True)
class Extracted:
    """Samples by their features.

    Args:
        features: by name, each (N, d).
        label: the classes, (N,), where there are any.
        nfe: network evaluations for a sample, where they were drawn.
        seconds: of drawing them all, where they were drawn.
    """

    features: Mapping[str, Tensor]
    label: Tensor | None
    nfe: float | None
    seconds: float | None


def extract(subject: Subject, features: Features, folder: Path, ranks: Ranks, name: str) -> Extracted | None:
    """The features of all samples of a subject, on the first rank; None on the others, which compute their share.

    Finished batches are kept in the folder, and an interrupted command goes on from them. All ranks must call.

    Args:
        subject: the samples.
        features: what is computed of them.
        folder: where parts are kept, which all ranks see.
        ranks: the processes that share the work.
        name: of the progress bar.
    """
    kept = parts_of(folder, "features", [subject.key, features.fingerprint])
    names = {first: part_name(subject, first) for first in range(0, subject.num, subject.batch)}
    todo = [first for first, part in names.items() if part not in kept]
    ranks.barrier()  # every rank has its list before the first part is written
    own = ranks.shard(todo)
    total = sum(min(subject.batch, subject.num - first) for first in own)
    if own:
        with progress_bar(name, total, ranks.first, unit="sample") as bar:
            for first in own:
                kept.save(names[first], _computed(subject, features, first, bar))
    ranks.barrier()
    if not ranks.first:
        return None
    parts = [kept.load(part) for part in names.values()]
    return _joined(parts, subject.num)


def samples_at(subject: Subject, rows: list[int]) -> Tensor:
    """Some of the samples of a subject, as they are stored, (n, *D)."""
    firsts = sorted({row - row % subject.batch for row in rows})
    parts = {first: subject.part(first)["x"] for first in firsts}
    return torch.as_tensor(np.stack([parts[row - row % subject.batch][row % subject.batch] for row in rows]))


def all_samples(subject: Subject) -> Tensor:
    """All samples of a subject, as they are stored, (N, *D)."""
    parts = [subject.part(first)["x"] for first in range(0, subject.num, subject.batch)]
    return torch.as_tensor(np.concatenate(parts))


def _computed(subject: Subject, features: Features, first: int, bar: Bar) -> Arrays:
    part = subject.part(first, bar)
    found = {key: value.numpy() for key, value in features.of(torch.as_tensor(np.array(part["x"]))).items()}
    if "nfe" not in part:  # which has counted the samples already
        bar.skip(len(part["x"]))
    return {**{key: part[key] for key in FACTS if key in part}, **found}


def _joined(parts: list[Arrays], num: int) -> Extracted:
    names = [key for key in parts[0] if key not in FACTS]
    features = {key: torch.as_tensor(np.concatenate([part[key] for part in parts])) for key in names}
    label = torch.as_tensor(np.concatenate([part["label"] for part in parts])) if "label" in parts[0] else None
    if "nfe" not in parts[0]:
        return Extracted(features, label, None, None)
    nfe, seconds = (sum(float(part[key]) for part in parts) for key in ("nfe", "seconds"))
    return Extracted(features, label, nfe / num, seconds)
