"""The likelihood of a data set under a trained run, by one estimator or several side by side."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorefield.commands.arguments import at_least
from scorefield.commands.codec import check_codec, rate_line, rate_of
from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.generate import of_rows
from scorefield.commands.images import Images
from scorefield.commands.interruption import Interrupted
from scorefield.commands.likelihood.partial_results import PartialResults
from scorefield.commands.likelihood.report import MEANINGS, estimates_of, lines_of, prior_kl_of, versions
from scorefield.commands.likelihood.scorer import finite, scorer_of
from scorefield.commands.likelihood.solver_choice import (
    TOLERANCE,
    KeptPlan,
    check_given,
    choose,
    errors_left,
    given_solver,
    images_at_once,
    unit_of,
)
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.progress_bar import Bar, progress_bar, tell
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.evaluation import plot_histogram
from scorefield.likelihood import Exact
from scorefield.likelihood.columns import Columns
from scorefield.likelihood.dataset import EXACT_DIMS, DatasetScorer
from scorefield.sde_lib.sde import check_one_level
from scorefield.training.distributed.ranks import Ranks


def likelihood(
    workdir: Path,
    *,
    data: str | None = None,
    split: str = "test",
    num: int | None = None,
    label: str | int | None = None,
    estimators: Sequence[str] = ("ode",),
    tolerance: float | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    divergence: str | None = None,
    dequantisation: str | None = None,
    prior: str = "standard",
    codec: bool = False,
    draws: int = 32,
    code_draws: int | None = None,
    chain: int = 1000,
    variance: str = "small",
    times: str = "log_snr",
    seed: int = 0,
    batch: int = 128,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Bits/dim of a split (or `num` images of it) by each estimator; nats/dim where the data is continuous.

    Of a latent run it is a bound for the images, of three parts: their pixels given the codes, the codes by the
    estimator, and the encoder. What the bound needs beside the run is fitted on training images, and kept in
    image_model.json.

    Each image counts once. Finished batches are saved beside the output. An interrupted command that is run again
    resumes from them and gives the same number. Under torchrun the ranks share the batches. The command writes a
    report (JSON), the values and latents of each image (.npz), and a histogram.

    Args:
        workdir: of the run.
        data: a data set to use instead of the run's, written as on a command line.
        split: "train" or "test".
        num: the number of images, drawn at random by the seed; all by default.
        label: the number or name of one class for all images, in place of their own.
        estimators: among "ode", "dsm", "vlb" and "elbo" (see `commands.likelihood.report.MEANINGS`).
        tolerance: the solver's largest error of an ode value, in bits/dim, or nats/dim for continuous data. It chooses
            steps and number of probes on the first images, and the run keeps the choice for later commands. Images
            whose error is larger are solved again with more steps, and the report names those that stay above it.
            The default is 1e-2, unless a solver, grid or steps are given.
        solver: a solver instead of a tolerance. The effect of half the steps on the first 6 images is then measured.
        grid: of its times.
        steps: of the grid, 50 by default.
        divergence: "exact", "hutchinson" or "hutchpp". By default exact in up to 16 dimensions, else Hutchinson's.
        dequantisation: "uniform" (the default), "importance:samples=8", "truncated_normal", or "variational" (after
            --mode=train_dequantiser).
        prior: "standard", from which the model samples, or "data", with the mean and variance of the training data.
        codec: also compress the first 100 of the images, and report the rate beside the bound of the codec's chain.
        draws: evaluations of a bound's diffusion term, for each image.
        code_draws: of a latent run, codes of each image (1), over which the bound is averaged. With several, "ode" has
            the importance-weighted bound too.
        chain: steps of the vlb.
        variance: of those steps, "small" or "large".
        times: of the evaluations of "elbo" and "dsm": "log_snr", or "measured" after --mode=grid --for=training, which
            gives the same mean with less error.
        seed: of the images, dequantisation, probes, times and noise.
        batch: the most images that the networks see at once, which bounds the memory.
        ema: use the averaged weights.
        checkpoint: see `find_checkpoint`.
        device: see `open_run`.
        output: the report, .json.

    Raises:
        ValueError: if there is no trained run, an option is invalid, or the options contradict each other.
    """
    _check_numbers(num, batch, draws, chain, seed, variance, tolerance, steps)
    at_least(1, code_draws=code_draws)
    of_ode = {
        "tolerance": tolerance, "solver": solver, "grid": grid, "steps": steps, "divergence": divergence,
        "dequantisation": dequantisation,
    }  # fmt: skip
    names = _estimator_names(estimators, of_ode)
    ranks = Ranks.of_environment()
    check_output(output, ".json")
    default = workdir / f"likelihood_{split}.json"
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    run = trained.run.on(data)
    tell(f"reads the {split} split of {run.config.data.name}")
    dataset = run.dataset(split)
    images = Images.of(dataset, num, seed)
    stored = finite(images.stored, dataset.name)
    if codec:
        check_codec(trained, "likelihood --codec")
    conditioning = data_conditioning(run, images.data, label)
    scorer, of_scorer = scorer_of(
        trained, stored, of_rows(conditioning.cond, run.device), dequantisation=dequantisation, prior=prior,
        times=times, code_draws=code_draws, batch=batch, seed=seed, draws=draws, chain=chain, variance=variance,
    )  # fmt: skip
    on_levels = run.levels is not None and not run.dequantised
    if ranks.first and on_levels and {"ode", "dsm"} & set(names) and dequantisation in (None, "uniform"):
        on_stderr(
            "this run was trained on the levels themselves, and its flow is right near them: uniform dequantisation "
            "may cost a bit/dim. Take --dequantisation=truncated_normal for ode, or --estimators=elbo"
        )
    if divergence is not None:
        scorer.divergence = build.build(build.DIVERGENCES, divergence)
    given = given_solver(run, scorer, solver, grid, steps, tolerance)
    if "ode" in names and given is None:
        check_one_level(run.sde, "a tolerance", "give --solver=rk4 --grid=uniform --steps=100, or --estimators=elbo")
    of_values = {
        **conditioning.described, **of_ode, "prior": prior, "data_sha256": dataset.fingerprint, **of_scorer,
        **trained.described,
    }  # fmt: skip
    settings = {
        "split": split, "num": len(stored), "images": images.described, "estimators": names, **of_values,
        "draws": draws, "times": times, "chain": chain, "variance": variance, "seed": seed, "batch": batch,
        "versions": versions(),
    }  # fmt: skip
    decided = {"run": run.described(), "prior_moments": [scorer.prior.mean.tolist(), scorer.prior.std.tolist()]}
    if scorer.density is not None:
        decided["times"] = scorer.density.probability.tolist()
    place = Path(output) if output else default
    made_by = {"device": str(run.device), "random_streams": "a spawn key for each"}
    results = PartialResults(place, {**settings, **decided, **made_by})
    if ranks.first:
        results.delete_old_others()
    facts = given or {}
    with _saying_what_is_kept(results, names, len(stored), batch):
        if "ode" in names and given is None:
            tolerance = TOLERANCE if tolerance is None else tolerance
            kept = KeptPlan.of(workdir, place, {**of_values, **decided, "tolerance": tolerance})
            facts = choose(scorer, kept, results, ranks, tolerance, divergence is None, batch)
        elif divergence is None and scorer.dims <= EXACT_DIMS:
            scorer.divergence = Exact()
        _score(scorer, names, results, ranks, batch)
        if ranks.first and "ode" in names and given is not None:
            facts |= check_given(scorer, batch)
    lines: dict[str, Any] = {}
    if ranks.first:
        columns = _gathered(results, names, len(stored), batch)
        if "ode" in names and given is None:
            assert tolerance is not None
            facts |= errors_left(scorer, columns, images.index, tolerance)
        described = {"t_min": run.sde.t_min, "t_max": run.sde.t_max, "data": dataset.name, **settings}
        report = _report(scorer, names, columns, facts, described, batch)
        content = {key: value for key, value in settings.items() if key not in ("batch", "versions")}
        path = output_path(output, default, content)
        report |= {"codec": rate_of(trained, stored, conditioning.cond, seed, batch)} if codec else {}
        lines = _write(path, scorer, report, columns, images)
        results.delete()
    ranks.barrier()
    return lines


def _report(
    scorer: DatasetScorer, names: Sequence[str], columns: Columns, facts: dict[str, Any], described: dict[str, Any],
    batch: int,
) -> dict[str, Any]:  # fmt: skip
    unit = unit_of(scorer).replace("/", "_per_")
    estimates = estimates_of(scorer, names, unit, columns, facts)
    return {
        unit: estimates[names[0]][unit],
        "unit": f"{unit_of(scorer)}, also of all errors, parts, tolerances and of prior_kl",
        "standard_error": estimates[names[0]]["standard_error"],
        "n": len(scorer.stored),
        "estimates": estimates,
        "prior_kl": prior_kl_of(scorer, batch),
        "levels": scorer.levels,
        **described,
    }


def _write(
    path: Path, scorer: DatasetScorer, report: dict[str, Any], columns: Columns, images: Images
) -> dict[str, Any]:
    """Write the report, the arrays and the picture; the lines to print."""
    unit, names = unit_of(scorer).replace("/", "_per_"), report["estimates"]
    write_json(path, report)
    values = {name: -columns[name] / scorer.unit for name in names}
    errors = {f"{name}_error": columns[f"{name}_error"] / scorer.unit for name in names if f"{name}_error" in columns}
    errors |= {"ode_solver_error": columns["ode_solver_error"] / scorer.unit} if "ode_solver_error" in columns else {}
    arrays = {**values, **errors, "latent": columns.get("latent"), "index": images.index}
    first = next(iter(values.values()))
    write_arrays(path.with_suffix(".npz"), **{unit: first}, **arrays)
    levels, picture = scorer.levels, path.with_suffix(".png")
    uniform = {} if levels is None else {"uniform": math.log2(levels)}
    plot_histogram(torch.as_tensor(first), picture, x=f"{unit_of(scorer)}: lower is better", mark=uniform)
    rate = {"codec, bits/dim": rate_line(report["codec"])} if "codec" in report else {}
    return {**lines_of(names, unit, levels), **rate, "files": [str(path), str(path.with_suffix(".npz")), str(picture)]}


def _check_numbers(
    num: int | None, batch: int, draws: int, chain: int, seed: int, variance: str, tolerance: float | None,
    steps: int | None,
) -> None:  # fmt: skip
    at_least(1, num=num, batch=batch, chain=chain, steps=steps)
    at_least(2, draws=draws)
    at_least(0, seed=seed)
    if variance not in ("small", "large"):
        raise ValueError(f"expected --variance of small or large, got {variance!r}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"expected --tolerance above 0, as 0.01, got {tolerance}")


def _estimator_names(estimators: Sequence[str], of_ode: dict[str, Any]) -> list[str]:
    """The estimators, once they are known to be valid; `of_ode` has the options that only the ode uses."""
    names = [estimators] if isinstance(estimators, str) else list(estimators)
    unknown = [name for name in names if name not in MEANINGS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"expected --estimators among {', '.join(MEANINGS)}, each once, got {', '.join(names)!r}")
    if "ode" not in names and any(option is not None for option in of_ode.values()):
        raise ValueError(
            "--tolerance, --solver, --grid, --steps, --divergence and --dequantisation are options of ode, which is "
            f"not among the --estimators {', '.join(names)}: add it, or leave them out"
        )
    return names


@contextmanager
def _saying_what_is_kept(results: PartialResults, names: Sequence[str], total: int, batch: int) -> Iterator[None]:
    """Ctrl-C within says how many images each estimator has scored, if any has."""
    try:
        yield
    except KeyboardInterrupt:
        parts = {name: [first for first in range(0, total, batch) if _part(name, first) in results] for name in names}
        scored = {name: sum(min(batch, total - first) for first in firsts) for name, firsts in parts.items()}
        if not any(scored.values()):
            raise
        each = ", ".join(
            f"{count:,} of {total:,} images" + f" by {name}" * (len(names) > 1) for name, count in scored.items()
        )
        raise Interrupted(signal.SIGINT, f"interrupted after {each}: the same command continues") from None


def _score(scorer: DatasetScorer, names: Sequence[str], results: PartialResults, ranks: Ranks, batch: int) -> None:
    """Score the batches that have no result yet, one estimator at a time."""
    total = len(scorer.stored)
    todo = [(name, first) for name in names for first in range(0, total, batch) if _part(name, first) not in results]
    ranks.barrier()  # every rank has its list before the first result is written
    own = list(ranks.shard(todo))
    images = sum(min(batch, total - first) for _, first in own)
    with progress_bar("likelihood", images, ranks.first, unit="image") as bar:
        for name, first in own:
            rows = slice(first, min(first + batch, total))
            count, began = rows.stop - rows.start, time.perf_counter()
            columns = _scored(scorer, name, rows, bar)
            seconds = np.full(count, (time.perf_counter() - began) / count)
            arrays = {key: column.numpy() for key, column in columns.items()}
            results.save(_part(name, first), {**arrays, f"{name}_seconds": seconds})
    ranks.barrier()


def _scored(scorer: DatasetScorer, name: str, rows: slice, bar: Bar) -> Columns:
    """The columns of a batch."""
    count, parts = rows.stop - rows.start, list[Columns]()
    size = images_at_once(scorer, count) if name == "ode" else count
    for start in range(rows.start, rows.stop, size):
        part = slice(start, min(start + size, rows.stop))
        parts.append(getattr(scorer, name)(part, bar.part(part.stop - part.start)))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _gathered(results: PartialResults, names: Sequence[str], total: int, batch: int) -> Columns:
    columns: Columns = {}
    for name in names:
        parts = [results.load(_part(name, first)) for first in range(0, total, batch)]
        columns |= {key: torch.as_tensor(np.concatenate([part[key] for part in parts])) for key in parts[0]}
    return columns


def _part(name: str, first: int) -> str:
    return f"{name}_{first:09d}"
