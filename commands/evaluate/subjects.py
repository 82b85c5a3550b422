"""What is evaluated: samples that a run draws, or samples of a file."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scorefield.commands.evaluate.store import parts_of
from scorefield.commands.generate import Guide, batch_sampler, finite, grid
from scorefield.commands.parts import Arrays
from scorefield.commands.progress_bar import Bar
from scorefield.commands.sampling import described
from scorefield.commands.trained import Trained
from scorefield.evaluation.features.base import StoredAs
from scorefield.models import CountCalls
from scorefield.sde_lib.denoiser import Cond
from scorefield.training.data import Dataset


class Subject(Protocol):
    """A set of samples.

    `described` has the settings for a reader, and `key` all that decides the samples. `part` gives those from `first`
    on as the data set stores them, `x` (count, *D), with their `label` where they have any, and `nfe` and `seconds` in
    all where they were drawn.
    """

    @property
    def num(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def stored_as(self) -> StoredAs: ...

    @property
    def described(self) -> dict[str, Any]: ...

    @property
    def key(self) -> list[Any]: ...

    def part(self, first: int, bar: Bar | None = None) -> Arrays: ...


def part_name(subject: Subject, first: int) -> str:
    """The name of a kept part: the last one of fewer samples has fewer."""
    return f"{first:09d}_{min(subject.batch, subject.num - first)}"


@dataclass
class Drawn:
    """Samples of a run, which are drawn when they are needed and kept in the run's directory.

    Args:
        trained: the run with its weights.
        sampling: `solver`, `grid`, `steps` and `denoise`.
        num: how many.
        batch: samples in one batch.
        seed: of the noise.
        folder: where parts are kept.
        cond: conditioning, with a row for each sample.
        guide: makes the guided denoiser.
        conditioned: what a report says of conditioning and guidance.
    """

    trained: Trained
    sampling: Mapping[str, Any]
    num: int
    batch: int
    seed: int
    folder: Path
    cond: Cond = field(default_factory=dict)
    guide: Guide | None = None
    conditioned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored_as(self) -> StoredAs:
        """How the samples are stored."""
        return StoredAs(self.trained.run.data.shape, self.trained.run.data.levels)

    @property
    def described(self) -> dict[str, Any]:
        return {**described(self.sampling), "seed": self.seed, **self.conditioned, **self.trained.described}

    @property
    def key(self) -> list[Any]:
        # Times, because a measured grid is known by its name. The batch, because the last bits of a network's answer
        # depend on its size.
        run = self.trained.run
        with torch.no_grad():
            times = grid(run, self.sampling).tolist()
        codes = None if run.autoencoder is None else [run.autoencoder.sha256, run.tile]
        return [self.described, run.described(), times, self.batch, str(run.device), codes]

    def part(self, first: int, bar: Bar | None = None) -> Arrays:
        run = self.trained.run
        kept = parts_of(self.folder, "samples", self.key)
        name, count = part_name(self, first), min(self.batch, self.num - first)
        if name in kept:
            return kept.load(name)
        counted, began = CountCalls(self.trained.denoiser), time.perf_counter()
        draw = batch_sampler(run, counted, sampling=self.sampling, seed=self.seed, cond=self.cond, guide=self.guide)
        x = run.to_stored(finite(draw(first, count, bar.steps(count) if bar else None), self.sampling))
        arrays = {"x": x.numpy(), "nfe": np.array(counted.samples), "seconds": np.array(time.perf_counter() - began)}
        if "label" in self.cond:
            arrays["label"] = self.cond["label"][first : first + count].numpy()
        kept.save(name, arrays)
        return arrays


@dataclass
class Stored:
    """Samples that are there: of a file, or of a data set.

    Args:
        data: the samples.
        batch: how many features are computed at once.
        rows: their places in the file, where they are some of its samples.
    """

    data: Dataset
    batch: int = 256
    rows: NDArray[np.int64] | None = None

    @property
    def num(self) -> int:
        return len(self.data)

    @property
    def stored_as(self) -> StoredAs:
        """How the samples are stored."""
        return StoredAs(self.data.shape, self.data.levels)

    @property
    def described(self) -> dict[str, Any]:
        return {"samples": self.data.name, "samples_sha256": self.data.fingerprint}

    @property
    def key(self) -> list[Any]:
        return [self.data.fingerprint, self.data.levels, self.batch]

    def part(self, first: int, bar: Bar | None = None) -> Arrays:
        rows = slice(first, min(first + self.batch, self.num))
        arrays: Arrays = {"x": np.asarray(self.data.x[rows])}
        if self.data.label is not None:
            arrays["label"] = self.data.label[rows]
        return arrays
