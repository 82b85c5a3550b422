"""The table of an evaluation: a row of settings and numbers for each set of samples, and the floor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.evaluate.classes import per_class
from scorefield.commands.evaluate.extract import Extracted, extract
from scorefield.commands.evaluate.likelihoods import bits_of
from scorefield.commands.evaluate.numbers import LEAST_FOR_INFINITY, OF_SIZE, Numbers, numbers_of
from scorefield.commands.evaluate.reference import SEED, Reference
from scorefield.commands.evaluate.report import line_of, name_of_row, recipe_of
from scorefield.commands.evaluate.store import kept_json, shared_folder
from scorefield.commands.evaluate.subjects import Drawn, Subject
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.progress_bar import say
from scorefield.evaluation.features.base import Features
from scorefield.evaluation.metrics.kernel import kernel_difference
from scorefield.training.data.dataset import random_rows
from scorefield.training.distributed.ranks import Ranks

ALONE = Ranks()
Rows = Sequence[Subject]


@dataclass(frozen=True)
class Evaluation:
    """How rows are evaluated.

    Args:
        metrics: names of `METRICS`.
        features: of all samples.
        reference: what they are compared with; None on other ranks than the first.
        folder: where samples and features are kept.
        ranks: the processes that share the work.
    """

    metrics: Sequence[str]
    features: Features
    reference: Reference | None
    folder: Path
    ranks: Ranks

    @property
    def recipe(self) -> dict[str, Any]:
        """What must agree for two reports to be comparable, beside the number of samples."""
        described = dict(self.reference.described) if self.reference is not None else {}
        return {"features": self.features.recipe, "features_sha256": self.features.fingerprint, "reference": described}

    def floor(self) -> Numbers:
        """The metrics of held-out data in the place of the samples, kept for all runs."""
        if self.reference is None:
            return {}
        reference, held_out = self.reference, self.reference.held_out
        if held_out is None:
            on_stderr("no floor: statistics have no held-out images; give --data in place of --reference for one")
            return {}
        names = [name for name in self.metrics if name != "fd_inf" or len(held_out) >= LEAST_FOR_INFINITY]
        key = [self.recipe, held_out.fingerprint, names]
        floor: Numbers = kept_json(
            shared_folder(), "floor", key, lambda: numbers_of(names, reference.floor, reference.side)
        )
        return floor

    def table(self, rows: Rows) -> list[dict[str, Any]]:
        """A row for each set of samples, on the first rank; a row that fails says why, and the others go on."""
        table: list[dict[str, Any]] = []
        every = [_facts(subject) for subject in rows]
        for i, (subject, facts) in enumerate(zip(rows, every, strict=True)):
            name = name_of_row(facts, every)
            try:
                found = extract(subject, self.features, self.folder, self.ranks, f"{name} ({i + 1} of {len(rows)})")
            except ValueError as error:
                if self.ranks.world > 1 or len(rows) == 1:
                    raise
                table.append({"name": name, **facts, "failed": str(error)})
                say(line_of(table[-1]))
                continue
            if found is None or self.reference is None:
                continue
            dims = int(found.features["features"].shape[1])
            row = {
                "name": name,
                **facts,
                "n": subject.num,
                "dimensions": dims,
                "nfe": found.nfe,
                "seconds": found.seconds,
            }
            row |= self._numbers(subject, found, self.reference)
            row["recipe"] = recipe_of(self.features.recipe, self.reference.described, row)
            table.append(row)
            say(line_of(row))
        return table

    def differences(self, table: list[dict[str, Any]], rows: Rows) -> None:
        """Put KID above that of the best row beside each row, with the error of this difference, on the first rank.

        Rows of one run have the same noise, sample by sample, so their differences are known better than their values.
        """
        known = {i: row for i, row in enumerate(table) if "kid" in row.get("numbers", {})}
        side = None if self.reference is None else self.reference.side
        if len(known) < 2 or side is None or side.features is None:
            return
        best = min(known, key=lambda i: float(known[i]["numbers"]["kid"]["value"]))
        real = side.features["features"]

        def features_of(i: int) -> Tensor:
            found = extract(rows[i], self.features, self.folder, ALONE, known[i]["name"])  # kept by now
            assert found is not None
            return found.features["features"]

        of_best = cache(lambda: features_of(best))  # read once, and not at all where every difference is kept
        for i, row in known.items():
            if i == best:
                continue
            key = [rows[i].key, rows[best].key, rows[i].num, self.recipe]
            value, error = kept_json(
                self.folder, "difference", key,
                lambda i=i: list(kernel_difference(features_of(i), of_best(), real)),  # type: ignore[misc]
            )  # fmt: skip
            row["kid_above_best"] = {"value": value, "standard_error": error, "best": known[best]["name"]}

    def _numbers(self, subject: Subject, found: Extracted, reference: Reference) -> dict[str, Any]:
        """The numbers of a row, those of as many samples as the floor has, and those of its classes."""
        least = len(reference.held_out) if reference.held_out is not None else subject.num

        def computed() -> dict[str, Any]:
            numbers: dict[str, Any] = {"numbers": numbers_of(self.metrics, found.features, reference.side)}
            sized = [name for name in self.metrics if name in OF_SIZE]
            if least < subject.num and sized:
                rows = torch.from_numpy(random_rows(subject.num, least, SEED))  # a file may be in an order
                part = {name: value[rows] for name, value in found.features.items()}
                numbers["numbers_at_floor_size"] = numbers_of(sized, part, reference.side)
            by_class = per_class(found, reference) if "kid" in self.metrics else {}
            return numbers | ({"per_class": by_class} if by_class else {})

        key = [subject.key, subject.num, self.recipe, list(self.metrics), least]
        return dict(kept_json(self.folder, "numbers", key, computed))


def with_bits(table: list[dict[str, Any]], rows: Rows, folder: Path) -> None:
    """Put bits/dim of test and training images beside each row, computed once for each weights.

    All ranks must call, since they share that work; the table is the first one's.
    """
    every = [bits_of(subject.trained, folder) if isinstance(subject, Drawn) else {} for subject in rows]
    for row, bits in zip(table, every, strict=False):
        if bits and "failed" not in row:
            row["bits_per_dim"] = bits


def _facts(subject: Subject) -> dict[str, Any]:
    """The settings of a subject, with the images that its weights had seen where their name says so."""
    facts = dict(subject.described)
    name = str(facts.get("checkpoint", ""))
    return {**facts, "images": int(name)} if name.isdecimal() else facts
