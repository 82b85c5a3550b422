"""Metrics of samples against a data set, with their errors, their floors and their recipe."""

import dataclasses
import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorefield.commands.arguments import at_least
from scorefield.commands.budget import check_budget
from scorefield.commands.evaluate.baseline import check_comparable, compared, read_baseline
from scorefield.commands.evaluate.copies import copies_of
from scorefield.commands.evaluate.extract import all_samples, samples_at
from scorefield.commands.evaluate.numbers import LEAST_FOR_INFINITY, MEANINGS, METRICS, Numbers, no_images
from scorefield.commands.evaluate.opened import open_samples, open_sets
from scorefield.commands.evaluate.reference import SEED, Reference, reference_of_data, reference_of_file
from scorefield.commands.evaluate.report import (
    best_of,
    lines_of,
    pareto_of,
    plot_beside,
    plot_sweep,
    warnings_of,
)
from scorefield.commands.evaluate.rows import Choice, open_all, rows_of
from scorefield.commands.evaluate.statistics_files import stored_as_of
from scorefield.commands.evaluate.store import shared_folder
from scorefield.commands.evaluate.subjects import Stored, Subject
from scorefield.commands.evaluate.table import Evaluation, Rows, with_bits
from scorefield.commands.features import open_features
from scorefield.commands.interruption import Interrupted
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import check_output, output_path, write_json
from scorefield.commands.run import device_of, stored_tensor
from scorefield.commands.sampling import is_tuned
from scorefield.configs import build
from scorefield.evaluation.features.base import StoredAs
from scorefield.training.distributed.ranks import Ranks

COPIES = "nn"  # the metric that compares samples with the training data one by one
METRICS_OF_IMAGES, METRICS_OF_MOMENTS = ("fid", "kid", "pr", "dc", COPIES), ("fid",)
OF_IMAGES = ("kid", "pr", "dc", "cmmd")  # metrics for which moments do not suffice
FOLDER = ".evaluate"  # in a run: samples and features, from which the same command goes on
PICTURED = 64  # samples of a picture


def evaluate(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    data: str | None = None,
    split: str = "train",
    reference: str | None = None,
    reference_images: int | None = None,
    features: str | None = None,
    metrics: Sequence[str] | None = None,
    num: int = 2048,
    solver: tuple[str, ...] = (),
    steps: tuple[int, ...] = (),
    budget: tuple[int, ...] = (),
    grid: str | None = None,
    denoise: bool | None = None,
    checkpoint: tuple[str, ...] = (),
    ema: bool = True,
    raw: bool = False,
    label: str | int | None = None,
    caption: str | None = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float | None = None,
    guidance_parallel: float | None = None,
    guidance_norm: float | None = None,
    guide: str | None = None,
    classifier: float | None = None,
    likelihood: bool = False,
    baseline: str | None = None,
    tile: int = 0,
    seed: int = 0,
    batch: int = 256,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Metrics of a run's samples, or of those in --input, against a data set or statistics.

    A run is evaluated with every --solver at every number of --steps: a row for each. With --budget in place of --steps
    a solver takes the most steps within that number of network evaluations. There are rows for every --checkpoint
    (several, or "all"), and with --raw for both weights.
    --input is a folder or an archive of images, an .npy or an .npz, and needs no run. The samples are what a user would
    save: rounded to the levels of the data.

    The reference is `reference_images` images (`num` of them by default) of the --split of the run's data or --data,
    or the statistics of --reference. Beside each number stand its standard error and the floor: the same metric of
    held-out data, the other split, in the place of the samples. Metrics are fid, kid, pr (precision and recall), dc
    (density and coverage), is, sfid, vendi, cmmd, fd_inf, and nn, which looks for copies of training data.
    docs/evaluation.md says what each means.

    With --likelihood the rows have bits/dim of test and training images too. With --baseline, an earlier report of this
    mode, each number is compared with the earlier one; a report by another recipe is refused.

    Finished batches are kept, features of data sets in a cache for all runs. The same command goes on from them after
    Ctrl-C. Under torchrun the ranks share the batches, to the same numbers. Writes a report (JSON) and pictures.

    Raises:
        ValueError: if there is no trained run or no samples, or an option does not fit them.
    """
    at_least(1, batch=batch, steps=min(steps, default=None), budget=min(budget, default=None))
    check_budget(budget, steps)
    at_least(2, num=num, reference_images=reference_images)
    at_least(0, seed=seed)
    ranks = Ranks.of_environment()
    check_output(output, ".json")
    before = None if baseline is None else read_baseline(Path(baseline))
    chosen = _metrics(metrics, reference is not None)
    if COPIES in chosen and reference is not None:
        raise ValueError(f"expected --data for {COPIES}, which looks at images, got --reference: leave {COPIES} out")
    guiding = {
        "guidance": guidance, "interval": guidance_interval, "rescale": guidance_rescale,
        "parallel": guidance_parallel, "norm": guidance_norm, "guide": guide, "classifier": classifier,
    }  # fmt: skip
    for name in solver:
        if not is_tuned(name):
            build.build(build.SOLVERS, name)  # a mistake is found before any work
    choice = Choice(solver, steps, budget, grid, denoise, checkpoint, ema, raw, label, caption, guiding, tile)
    if input is not None and choice != Choice(ema=ema, guidance=guiding | {"guidance": 1.0}):
        raise ValueError("expected the samples of --input as they are, got options of sampling: leave them out")
    every = open_all(workdir, choice, device) if (workdir / "config.json").is_file() or input is None else []
    # Features of the run's own network are those of its newest weights, for all rows.
    trained = max(every, key=lambda each: (each.checkpoint.name, each.ema), default=None)
    sets = open_sets(trained, data, split, reference is not None, label)
    known = stored_as_of(Path(reference)) if reference else None
    if sets is not None:
        known = StoredAs(sets[0].shape, sets[0].levels)
    if trained is not None:
        known = StoredAs(trained.run.data.shape, trained.run.data.levels)
    folder = shared_folder() if trained is None else workdir / FOLDER
    rows: Rows = (
        rows_of(every, choice, num=num, batch=batch, seed=seed, folder=folder)
        if input is None
        else [open_samples(Path(input), known, num, batch)]
    )
    if "fd_inf" in chosen and rows[0].num < LEAST_FOR_INFINITY:  # before anything is drawn
        raise ValueError(
            f"expected at least {LEAST_FOR_INFINITY} samples for fd_inf, got {rows[0].num}: give a larger --num, or "
            "take kid, which has no bias"
        )
    stored_as = known or rows[0].stored_as
    if trained is not None and data is not None:
        on_stderr(f"{data} takes the place of the run's own data: nn compares with its train split")
    extractor = open_features(features, stored_as, device_of(device), trained)
    with _saying_that_it_goes_on(), ranks.failing_together():
        if sets is None:
            against: Reference | None = reference_of_file(Path(reference or ""), extractor)
        else:
            part = sets[0].subset(reference_images or num, SEED)
            extractor = extractor.fitted(stored_tensor(part))
            against = reference_of_data(part, len(sets[0]), sets[1], extractor, rows[0].num, ranks)
        evaluation = Evaluation([name for name in chosen if name != COPIES], extractor, against, folder, ranks)
        recipe = {**evaluation.recipe, "samples": rows[0].num}
        if before is not None and ranks.first:
            check_comparable(recipe, before, str(baseline))
        floor, table = evaluation.floor(), evaluation.table(rows)
        if likelihood:
            with_bits(table, rows, folder)
    if against is None or not ranks.first:
        return {}
    evaluation.differences(table, rows)
    settings = {
        "metrics": chosen, "solver": list(solver), "steps": list(steps), "seed": seed, "batch": batch,
        "recipe": recipe, "of": [row.described for row in rows],
    }  # fmt: skip
    asked = {
        "input": input, "data": data, "split": split, "reference": reference, "reference_images": reference_images,
        "features": features, "likelihood": likelihood, **dataclasses.asdict(choice),
    }  # fmt: skip
    default = "evaluate.json" if input is None else f"evaluate_{Path(input).stem}.json"
    best = best_of(table)
    if best is None:
        raise ValueError(f"expected samples that are finite, got none: {table[0]['failed']}")
    subject = rows[table.index(best)]
    report = _report(settings, asked, floor, table, best)
    path = output_path(output, workdir / default, settings)
    files = [path, _picture(table, subject, floor, against, stored_as, path.with_suffix(".png"))]
    if COPIES in chosen and sets is not None:
        found = copies_of(all_samples(subject), sets, stored_as)
        report["copies"] = found.numbers
        if isinstance(subject, Stored) and subject.rows is not None:
            report["copies"]["rows"] = subject.rows.tolist()
        files.append(found.plot(path.with_name(f"{path.stem}_neighbours.png")))
    write_json(path, report)
    for line in warnings_of(best["numbers"], best["dimensions"], against.described):
        on_stderr(line)
    lines = lines_of(best, floor, report, [] if before is None else compared(table, before))
    return {**lines, "files": [str(file) for file in files]}


def _report(
    settings: dict[str, Any], asked: dict[str, Any], floor: Numbers, table: list[dict[str, Any]], best: dict[str, Any]
) -> dict[str, Any]:
    """The content of the JSON; `asked` are the options, from which the command can be read."""
    metric = next(iter(best["numbers"]))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {
        **settings, "floor": floor, "rows": table, "best": best["name"],
        "pareto": [row["name"] for row in pareto_of(table, metric)], "asked": asked,
        "meanings": {name: MEANINGS[name] for name in best["numbers"]}, "versions": versions,
    }  # fmt: skip


def _metrics(metrics: Sequence[str] | None, of_moments: bool) -> list[str]:
    """The metrics, once they are known to be names, each once."""
    if metrics is None:
        return list(METRICS_OF_MOMENTS if of_moments else METRICS_OF_IMAGES)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    known = (*METRICS, COPIES)
    if of_moments and (images := [name for name in names if name in OF_IMAGES]):
        raise no_images(images[0])
    if not names or not set(names) <= set(known) or len(set(names)) < len(names) or names == [COPIES]:
        raise ValueError(
            f"expected --metrics among {', '.join(known)}, each once and one beside {COPIES}, got {', '.join(names)!r}"
        )
    return names


def _picture(
    table: list[dict[str, Any]], best: Subject, floor: Numbers, reference: Reference, stored_as: StoredAs, path: Path
) -> Path:
    """Curves of a sweep, or the samples beside those of the reference."""
    if len([row for row in table if "numbers" in row]) > 1:
        return plot_sweep(table, floor, path)
    samples = stored_as.unit(samples_at(best, list(range(min(PICTURED, best.num)))))
    some = None if reference.data is None else torch.as_tensor(np.array(reference.data.x[: len(samples)]))
    return plot_beside(samples, None if some is None else stored_as.unit(some), path)


@contextmanager
def _saying_that_it_goes_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        number = int(getattr(error, "signal", signal.SIGINT))
        raise Interrupted(number, "interrupted: the same command goes on from the finished batches") from None
