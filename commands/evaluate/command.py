"""Metrics of samples against a data set, with their errors, their floors and their recipe."""

import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorefield.commands.arguments import at_least
from scorefield.commands.data_places import open_split
from scorefield.commands.evaluate.baseline import check_comparable, compared, read_baseline
from scorefield.commands.evaluate.classes import per_class
from scorefield.commands.evaluate.copies import Copies, copies_of
from scorefield.commands.evaluate.extract import Extracted, all_samples, extract
from scorefield.commands.evaluate.likelihoods import bits_of
from scorefield.commands.evaluate.numbers import MEANINGS, METRICS, Numbers, numbers_of
from scorefield.commands.evaluate.reference import OTHER, Reference, reference_of_data, reference_of_file
from scorefield.commands.evaluate.report import (
    best_of,
    line_of,
    name_of_row,
    pareto_of,
    plot_sweep,
    recipe_of,
    text_of,
)
from scorefield.commands.evaluate.rows import Choice, open_all, rows_of
from scorefield.commands.evaluate.sample_files import samples_of_file
from scorefield.commands.evaluate.store import kept_json, shared_folder
from scorefield.commands.evaluate.subjects import Drawn, Stored
from scorefield.commands.features import open_features
from scorefield.commands.interruption import Interrupted
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import check_output, output_path, write_json
from scorefield.commands.progress_bar import say, tell
from scorefield.commands.run import device_of
from scorefield.commands.trained import Trained
from scorefield.configs import build
from scorefield.evaluation import plot_samples
from scorefield.evaluation.features.base import Features, StoredAs
from scorefield.training.data import Dataset
from scorefield.training.distributed.ranks import Ranks

NEIGHBOURS = "nn"  # the metric that compares samples with the training data one by one
METRICS_OF_IMAGES, METRICS_OF_MOMENTS = ("fid", "kid", "pr", "dc", NEIGHBOURS), ("fid",)
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

    A run is evaluated with every --solver at every number of --steps, for every --checkpoint (several, or "all"), and
    with --raw for both weights: a row for each. --input is a folder or an archive of images, an .npy or an .npz, and
    needs no run. The samples are what a user would save: rounded to the levels of the data.

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
    at_least(1, batch=batch, steps=min(steps, default=None))
    at_least(2, num=num, reference_images=reference_images)
    at_least(0, seed=seed)
    ranks = Ranks.of_environment()
    check_output(output, ".json")
    before = None if baseline is None else read_baseline(Path(baseline))
    chosen = _metrics(metrics, reference is not None)
    guiding = {
        "guidance": guidance, "interval": guidance_interval, "rescale": guidance_rescale,
        "parallel": guidance_parallel, "norm": guidance_norm, "guide": guide, "classifier": classifier,
    }  # fmt: skip
    choice = Choice(solver, steps, grid, denoise, checkpoint, ema, raw, label, caption, guiding, tile)
    if input is not None and choice != Choice(ema=ema, guidance=guiding | {"guidance": 1.0}):
        raise ValueError("expected the samples of --input as they are, got options of sampling: leave them out")
    every = open_all(workdir, choice, device) if _is_run(workdir) or input is None else []
    trained = every[0] if every else None
    sets = _data(trained, data, split, reference is not None)
    if trained is not None:
        known: StoredAs | None = StoredAs(trained.run.data.shape, trained.run.data.levels)
    else:
        known = None if sets is None else StoredAs(sets[0].shape, sets[0].levels)
    given = None if input is None else Stored(_some(samples_of_file(Path(input), known), num), batch)
    stored_as = known or StoredAs(given.data.shape, given.data.levels) if given is not None else known
    assert stored_as is not None
    extractor = open_features(features, stored_as, device_of(device), trained)
    folder = shared_folder() if trained is None else workdir / FOLDER
    rows: list[Drawn] | list[Stored] = (
        [given] if given is not None
        else rows_of(every, choice, num=num, batch=batch, seed=seed, folder=folder)
    )  # fmt: skip
    with _saying_that_it_goes_on(), ranks.failing_together():
        against = _reference(sets, reference, extractor, label, trained, reference_images or num, num, ranks)
        recipe = {} if against is None else _recipe(extractor, against, rows[0].num)
        if before is not None and against is not None:
            check_comparable(recipe, before, str(baseline))
        floor: Numbers = {}
        if against is not None:
            floor = _floor(chosen, against, extractor)
        table = _table(rows, chosen, extractor, against, folder, ranks)
    if against is None:
        return {}
    if likelihood:
        _with_bits(table, rows, workdir)
    for row in table:
        row["name"] = name_of_row(row, table)
    settings = {
        "recipe": recipe, "metrics": chosen, "num": rows[0].num, "seed": seed, "batch": batch,
        "rows_of": [row.described for row in rows],
    }  # fmt: skip
    path = output_path(output, _default(workdir, input, trained), settings)
    report: dict[str, Any] = {**settings, "floor": floor, "rows": table}
    files = [path]
    if NEIGHBOURS in chosen:
        found = _copies(table, rows, sets, stored_as)
        if found is not None:
            report["copies"] = found.numbers
            files.append(found.picture(path.with_name(f"{path.stem}_neighbours.png"), _viewable(stored_as)))
    best = best_of(table)
    if best is None:
        raise ValueError(f"expected samples to evaluate, got none: {table[0].get('failed', 'no rows')}")
    metric = next(iter(best["numbers"]))
    report |= {
        "best": best["name"], "pareto": [row["name"] for row in pareto_of(table, metric)],
        "meanings": {name: MEANINGS[name] for name in best["numbers"] if name in MEANINGS}, "versions": _versions(),
    }  # fmt: skip
    write_json(path, report)
    files.append(_picture(table, rows, floor, against, stored_as, path))
    return {**_lines(table, best, floor, report, before), "files": [str(file) for file in files]}


def _metrics(metrics: Sequence[str] | None, of_moments: bool) -> list[str]:
    """The metrics, once they are known to be names, each once."""
    if metrics is None:
        return list(METRICS_OF_MOMENTS if of_moments else METRICS_OF_IMAGES)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    known = (*METRICS, NEIGHBOURS)
    if not names or not set(names) <= set(known) or len(set(names)) < len(names) or names == [NEIGHBOURS]:
        raise ValueError(
            f"expected --metrics among {', '.join(known)}, each once and one beside {NEIGHBOURS}, got "
            f"{', '.join(names)!r}"
        )
    return names


def _is_run(workdir: Path) -> bool:
    return (workdir / "config.json").is_file()


def _data(trained: Trained | None, data: str | None, split: str, of_moments: bool) -> tuple[Dataset, Dataset] | None:
    """The split that samples are compared with, and the other one; None beside statistics without data."""
    if split not in OTHER:
        raise ValueError(f"expected --split of train or test, got {split!r}: choose one")
    if trained is None and data is None:
        if of_moments:
            return None
        raise ValueError("expected --data or --reference to compare --input with, got neither: as --data=cifar10")
    if of_moments and data is not None:
        raise ValueError("expected --data or --reference, got both: leave one out")
    if of_moments or (trained is not None and trained.run.on(data).config.data.get("path") == ""):
        return None
    tell(f"reads both splits of {data or (trained and trained.run.config.data.name)}")
    if trained is not None:
        return trained.run.dataset(split), trained.run.dataset(OTHER[split])
    spec = build.spec(build.DATASETS, data or "")
    return open_split(spec, split), open_split(spec, OTHER[split])


def _reference(
    sets: tuple[Dataset, Dataset] | None, file: str | None, features: Features, label: str | int | None,
    trained: Trained | None, num: int, floor: int, ranks: Ranks,
) -> Reference | None:  # fmt: skip
    """The reference on the first rank; samples of one class are compared with that class."""
    if file is not None:
        return reference_of_file(Path(file), features)
    if sets is None:
        raise ValueError("expected data to compare with, because this run has none of its own: give --data=NAME")
    if label is not None and trained is not None and sets[0].label is not None:
        sets = tuple(_of_class(each, trained, label) for each in sets)  # type: ignore[assignment]
    return reference_of_data(*sets, features, num, floor, ranks)


def _of_class(dataset: Dataset, trained: Trained, label: str | int) -> Dataset:
    from scorefield.commands.labels import class_number

    rows = np.flatnonzero(dataset.label == class_number(trained.run, label))
    if len(rows) < 2:
        raise ValueError(f"expected images of class {label} in {dataset.name} ({dataset.split}), found {len(rows)}")
    return dataset.at(rows)


def _some(dataset: Dataset, num: int) -> Dataset:
    """The first `num` samples of a file, with a line if there are others."""
    if len(dataset) < 2:
        raise ValueError(f"expected at least 2 samples in {dataset.name}, got {len(dataset)}: give more")
    if num >= len(dataset):
        return dataset
    on_stderr(f"evaluates the first {num} of {len(dataset)} samples; --num={len(dataset)} takes all")
    return dataset.at(np.arange(num))


def _recipe(features: Features, reference: Reference, num: int) -> dict[str, Any]:
    """What must agree for two reports to be comparable."""
    return {
        "features": features.recipe, "features_sha256": features.fingerprint, "reference": dict(reference.described),
        "samples": num,
    }  # fmt: skip


def _floor(chosen: Sequence[str], reference: Reference, features: Features) -> Numbers:
    """The metrics of held-out data in the place of the samples."""
    if not reference.floor:
        on_stderr("no floor: statistics have no held-out images. Give --data for one")
        return {}
    assert reference.held_out is not None
    names = [
        name for name in chosen if name != NEIGHBOURS and not (name == "fd_inf" and len(reference.held_out) < 5000)
    ]
    key = [features.fingerprint, reference.described, reference.held_out.fingerprint, names]
    return kept_json(shared_folder(), "floor", key, lambda: numbers_of(names, reference.floor, reference.side))


def _table(
    rows: Sequence[Drawn] | Sequence[Stored], chosen: Sequence[str], features: Features,
    reference: Reference | None, folder: Path, ranks: Ranks,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row of settings and numbers for each subject, on the first rank."""
    table: list[dict[str, Any]] = []
    names = [name for name in chosen if name != NEIGHBOURS]
    for place, subject in enumerate(rows):
        facts = _facts(subject)
        title = " ".join(str(facts[key]) for key in ("solver", "steps") if key in facts) or "samples"
        try:
            found = extract(subject, features, folder, ranks, f"{title} ({place + 1} of {len(rows)})")
        except ValueError as error:
            if ranks.world > 1 or len(rows) == 1:
                raise
            table.append({**facts, "failed": str(error)})
            continue
        if found is None or reference is None:
            continue
        row = {**facts, "n": subject.num, "nfe": found.nfe, "seconds": found.seconds}
        row |= _numbers_of_row(names, subject, found, features, reference, folder)
        row["recipe"] = recipe_of(features.recipe, reference.described, row)
        table.append(row)
        say(line_of(row, [_facts(each) for each in rows]))
    return table


def _numbers_of_row(
    names: Sequence[str], subject: Drawn | Stored, found: Extracted, features: Features, reference: Reference,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of a row, those of its classes, and those of as many samples as the floor has."""
    key = [subject.described, subject.num, subject.batch, features.fingerprint, reference.described, names]
    floor_size = len(reference.floor["features"]) if reference.floor else subject.num

    def computed() -> dict[str, Any]:
        numbers = {"numbers": numbers_of(names, found.features, reference.side)}
        if floor_size < subject.num:
            part = {name: value[:floor_size] for name, value in found.features.items()}
            least = [name for name in names if name != "fd_inf"]
            numbers["numbers_at_floor_size"] = numbers_of(least, part, reference.side)
        if found.label is not None and reference.label is not None and reference.side.features is not None:
            numbers["per_class"] = per_class(found, reference)
        return numbers

    return dict(kept_json(folder, "numbers", [*key, floor_size], computed))


def _facts(subject: Drawn | Stored) -> dict[str, Any]:
    """The settings of a subject, with the images that its weights had seen where their name says so."""
    facts = dict(subject.described)
    name = str(facts.get("checkpoint", ""))
    return {**facts, "images": int(name)} if name.isdecimal() else facts


def _with_bits(table: list[dict[str, Any]], rows: Sequence[Drawn] | Sequence[Stored], workdir: Path) -> None:
    """Bits/dim of test and training images beside each row, computed once for each weights."""
    for row, subject in zip(table, rows, strict=True):
        if isinstance(subject, Drawn) and "failed" not in row:
            row["bits_per_dim"] = bits_of(subject.trained, workdir / FOLDER)


def _copies(
    table: Sequence[dict[str, Any]], rows: Sequence[Drawn] | Sequence[Stored], sets: tuple[Dataset, Dataset] | None,
    stored_as: StoredAs,
) -> Copies | None:  # fmt: skip
    """The samples of the best row beside the training images that are nearest."""
    best = best_of(table)
    if best is None or sets is None:
        return None
    subject = rows[next(i for i, row in enumerate(table) if row is best)]
    training, held_out = sorted(sets, key=lambda each: each.split != "train")
    return copies_of(all_samples(subject), training, held_out, stored_as)


def _viewable(stored_as: StoredAs) -> Any:
    return stored_as.unit


def _picture(
    table: Sequence[dict[str, Any]], rows: Sequence[Drawn] | Sequence[Stored], floor: Numbers, reference: Reference,
    stored_as: StoredAs, path: Path,
) -> Path:  # fmt: skip
    """Curves of a sweep, or the samples beside those of the reference."""
    picture = path.with_suffix(".png")
    if len([row for row in table if "numbers" in row]) > 1:
        return plot_sweep(table, floor, picture)
    samples = torch.as_tensor(rows[0].part(0)["x"][:PICTURED])
    panels = {"samples": stored_as.unit(samples)}
    if reference.data is not None:
        panels["reference"] = stored_as.unit(torch.as_tensor(np.asarray(reference.data.x[: len(samples)])))
    plot_samples(panels, picture)
    return picture


def _lines(
    table: Sequence[dict[str, Any]], best: dict[str, Any], floor: Numbers, report: dict[str, Any],
    before: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """What is printed at the end: the numbers of the best row beside the floor, its recipe, and warnings."""
    lines: dict[str, Any] = {}
    for name, number in best["numbers"].items():
        held_out = f"   (held-out data, n = {floor[name]['n']}: {text_of(floor[name])})" if name in floor else ""
        lines[name] = f"{text_of(number)}{held_out}"
    for row in table[:1]:
        for name in ("fid", "sfid"):
            if name in row.get("numbers_at_floor_size", {}):
                part = row["numbers_at_floor_size"][name]
                lines[f"{name} of {part['n']} samples, as many as the floor's"] = text_of(part)
    lines |= {f"bits/dim, {split}": text_of(number) for split, number in best.get("bits_per_dim", {}).items()}
    lines |= report.get("copies", {}).get("lines", {})
    if len(table) > 1:
        lines["best"] = best["name"]
    lines["recipe"] = best["recipe"]
    if before is not None:
        lines |= {f"compared, {i + 1}": line for i, line in enumerate(compared(table, before))}
    return lines


def _default(workdir: Path, source: str | None, trained: Trained | None) -> Path:
    if trained is not None or source is None:
        return workdir / "evaluate.json"
    return workdir / f"evaluate_{Path(source).stem}.json"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


@contextmanager
def _saying_that_it_goes_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        number = int(getattr(error, "signal", signal.SIGINT))
        raise Interrupted(number, "interrupted: the same command goes on from the finished batches") from None
