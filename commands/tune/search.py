"""Successive halving: many settings on few noises, and the best of them on more."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.generate import Guide, batch_sampler
from scorefield.commands.generate import grid as grid_of
from scorefield.commands.progress_bar import Bar, say
from scorefield.commands.run import Run
from scorefield.commands.sampling import ends_of_path
from scorefield.commands.trained import Trained
from scorefield.commands.tune.grid import moved
from scorefield.commands.tune.measures import Distance, Measure
from scorefield.configs import build
from scorefield.models import CountCalls
from scorefield.sde_lib.denoiser import Cond
from scorefield.solvers.solver import OnStep

KEPT = 3  # a third of the settings after a round
LAST, MOVED = 4, 3  # settings in the last round, and how many others have their grid moved
DIGITS = 6  # of the noise levels of a moved grid


@dataclass(frozen=True)
class Draws:
    """Samples of a seed: number `first` and those after it, with the evaluations that each took."""

    trained: Trained
    cond: Cond
    guide: Guide
    seed: int
    batch: int
    bar: Bar

    def __call__(self, sampling: dict[str, Any], first: int, count: int) -> tuple[Tensor, float]:
        """Samples (count, *D) in the model's values, NaN among them or not.

        Raises:
            ValueError: for a solver that does not take the path or the grid.
        """
        counted = CountCalls(self.trained.denoiser)
        with torch.no_grad():
            draw = batch_sampler(
                self.trained.run, counted, sampling=sampling, seed=self.seed, cond=self.cond, guide=self.guide
            )
            parts = []
            for start in range(first, first + count, self.batch):
                rows = min(self.batch, first + count - start)
                parts.append(draw(start, rows, self._shown(sampling, rows)))
        return torch.cat(parts), counted.samples / count

    def _shown(self, sampling: dict[str, Any], rows: int) -> OnStep:
        return self.bar.steps(rows * sampling["steps"])


@dataclass
class Entry:
    """A setting, with the rows of its measure so far."""

    sampling: dict[str, Any]
    rows: Tensor | None = None
    value: float = math.inf
    nfe: float = math.nan

    @property
    def known_rows(self) -> Tensor:
        """The rows, once there are some."""
        assert self.rows is not None
        return self.rows

    def extend(self, measure: Measure, draws: Draws, count: int) -> None:
        """Its measure of the first `count` samples.

        Raises:
            ValueError: as `Draws`.
        """
        done = 0 if self.rows is None else len(self.rows)
        if count > done:
            x, self.nfe = draws(self.sampling, done, count - done)
            new = measure.rows(x, done)
            self.rows = new if self.rows is None else torch.cat([self.rows, new])
        rows = self.known_rows
        value = measure.estimate(rows).value if bool(rows.isfinite().all()) else math.inf
        self.value = value if math.isfinite(value) else math.inf


@dataclass
class Halving:
    """Jamieson and Talwalkar 2016, "Non-stochastic best arm identification": every round has more noises.

    A setting that is NaN on a noise is the worst. One that fails is dropped, and `dropped` tells why.

    Args:
        measure: what is made least.
        draws: samples of the noise of the search.
        budget: evaluations of a sample, above which a setting is dropped.
        sizes: noises of each round.
    """

    measure: Measure
    draws: Draws
    budget: int
    sizes: Sequence[int]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def best(self, settings: Sequence[dict[str, Any]]) -> Entry:
        """The best setting, which was among the last few.

        Raises:
            ValueError: if every setting failed.
        """
        entries = [Entry(sampling) for sampling in settings]
        for size in self.sizes[:-1]:
            entries = self._round(entries, size)
            entries = entries[: max(LAST, math.ceil(len(entries) / KEPT))]
        others = self._with_moved_grids(entries, self.sizes[-2]) if isinstance(self.measure, Distance) else []
        return self._round([*entries[:LAST], *others], self.sizes[-1])[0]

    def drop(self, sampling: dict[str, Any], reason: str) -> None:
        """Note why a setting is left out."""
        self.dropped[sampling["solver"], reason] += 1

    def _round(self, entries: list[Entry], size: int) -> list[Entry]:
        kept = []
        for entry in entries:
            try:
                entry.extend(self.measure, self.draws, size)
            except ValueError as error:
                self.drop(entry.sampling, str(error))
                continue
            if entry.nfe > self.budget:
                self.drop(entry.sampling, f"{entry.nfe:g} evaluations of a sample")
            else:
                kept.append(entry)
        kept.sort(key=lambda entry: entry.value)
        if not kept or math.isinf(kept[0].value):
            raise ValueError(
                "expected a setting with finite samples, found none: train the run, or take a larger --budget"
            )
        best = [{**entry.sampling, "value": entry.value} for entry in kept[:LAST] if math.isfinite(entry.value)]
        self.rounds.append({"noises": size, "settings": len(kept), "best": best})
        say(f"{len(kept):4} settings on {size:4} noises: {kept[0].value:.5f} {named(kept[0].sampling)}")
        return kept

    def _with_moved_grids(self, entries: list[Entry], noises: int) -> list[Entry]:
        """The best settings of different solvers, each with a grid of its own."""
        different = {(entry.sampling["solver"], entry.sampling["denoise"]): entry for entry in reversed(entries)}
        best = sorted(different.values(), key=lambda entry: entry.value)[:MOVED]
        return [Entry(self._moved(entry.sampling, noises)) for entry in best]

    def _moved(self, sampling: dict[str, Any], noises: int) -> dict[str, Any]:
        run, measure = self.draws.trained.run, self.measure
        assert isinstance(measure, Distance)
        target = measure.target[:noises]

        def residual(log_snr: Tensor) -> Tensor:
            try:
                x, _ = self.draws({**sampling, "grid": own_grid(run, log_snr)}, 0, noises)
            except ValueError:
                return torch.full_like(target, math.inf).flatten()
            return (x - target).flatten()

        with torch.no_grad():
            first = run.sde.log_snr(grid_of(run, sampling))
            ends = [float(run.sde.log_snr(t)) for t in ends_of_path(run)]
        return {**sampling, "grid": own_grid(run, moved(first, residual, (ends[0], ends[1])))}


def own_grid(run: Run, log_snr: Tensor) -> str:
    """The spec of a grid with these log-SNRs, (T,), of few digits."""
    with torch.no_grad():
        high, low = (math.exp(-float(run.sde.log_snr(t)) / 2) for t in ends_of_path(run))
    levels = [min(max(float(f"{level:.{DIGITS}g}"), low), high) for level in (-log_snr / 2).exp().tolist()]
    return build.unparse({"name": "sigmas", "levels": tuple(levels)})


def named(sampling: dict[str, Any]) -> str:
    """A setting in words."""
    grid = "a grid of its own" if sampling["grid"].startswith("sigmas:") else sampling["grid"]
    ends = "and a last denoising" if sampling["denoise"] else "without denoising"
    return f"{sampling['solver']} on {grid}, {sampling['steps']} steps {ends},"
