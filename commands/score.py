"""Anomaly scores of a data set by a trained run, and how well they tell a second data set from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.commands.arguments import at_least
from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.generate import of_rows
from scorefield.commands.images import Images
from scorefield.commands.likelihood.solver_choice import TOLERANCE
from scorefield.commands.outputs import check_output, output_path
from scorefield.commands.progress_bar import Bar, progress_bar
from scorefield.commands.run import Run
from scorefield.commands.score_report import BANDS, MEANINGS, Scored, bands_of, lines_of, table_of, write
from scorefield.commands.trained import Trained, open_trained
from scorefield.evaluation.anomaly import GaussianFit, log_errors, typicality
from scorefield.evaluation.plain_codecs import plain_lengths
from scorefield.likelihood import DatasetScorer, GaussianPrior
from scorefield.likelihood.choose_solver import TRIAL_SAMPLES

TRAINING = 9  # the stream of random numbers of training images
BOUNDS = ("elbo", "dsm")


def score(
    workdir: Path,
    *,
    data: str | None = None,
    against: str | None = None,
    split: str = "test",
    num: int = 1000,
    training_images: int = 1000,
    label: str | int | None = None,
    estimators: Sequence[str] | None = None,
    tolerance: float | None = None,
    draws: int = 32,
    seed: int = 0,
    batch: int = 128,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Score how anomalous each image is, in several ways. A larger score is more anomalous.

    The scores are bits/dim, typicality, the network's errors by noise level, and bits/dim less those of PNG or xz. The
    report says what each means, its mean, and the share of images above 99% of the training images. Continuous data is
    scored in nats/dim, without a codec. So are the codes of a latent run, the means of its encoder.

    With `against` the report has the AUROC of each score: the chance that an image of the second set is above one of
    the first. The command writes a report (JSON), the scores and the maps of all images (.npz), a picture of the least
    and the most anomalous images with their maps, and histograms. A map has the bits (or nats) of each pixel, and their
    sum is the image's.

    Args:
        workdir: of the run.
        data: a data set to use instead of the run's, written as on a command line.
        against: a second one, of the same shape and levels.
        split: of both, "train" or "test".
        num: images of each, drawn at random by the seed.
        training_images: images of the run's own training split, from which the scores learn what is typical.
        label: the number or name of one class for all images, in place of their own.
        estimators: "elbo" or "dsm", by default the one that suits the run; with "ode" the flow too.
        tolerance: of the ode's solver, in bits/dim or nats/dim; 1e-2 by default.
        draws: evaluations of the bound for each image, at stratified noise levels that are uniform in the log-SNR.
        seed: of images, times and noise. Image i of both sets has the same noise.
        batch: images in one batch.
        ema: use the averaged weights.
        checkpoint: see `find_checkpoint`.
        device: see `open_run`.
        output: the report, .json.

    Raises:
        ValueError: if there is no trained run, an option is invalid, or a data set does not fit the run.
    """
    at_least(1, num=num, batch=batch)
    at_least(BANDS + 2, training_images=training_images)  # one is left out
    at_least(BANDS, draws=draws)
    at_least(0, seed=seed)
    check_output(output, ".json")
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("score")
    names = _estimators(trained.run, estimators, tolerance)
    settings: dict[str, Any] = {"seed": seed, "draws": draws}
    sets = [_opened(trained, "training", None, "train", training_images, label, {**settings, "stream": (TRAINING,)})]
    sets.append(_opened(trained, "data", data, split, num, label, settings))
    if against is not None:
        sets.append(_opened(trained, "against", against, split, num, label, settings))
    _evaluate(sets, names, batch, TOLERANCE if tolerance is None else tolerance)
    _score(sets, names)
    made_by = {
        **{each.name: each.facts() for each in sets}, "estimators": names, "tolerance": tolerance, **settings,
        **trained.described,
    }  # fmt: skip
    run, table = trained.run, table_of(sets)
    report = {
        "unit": sets[0].unit, "scores": table, "bands": bands_of(run, sets), "t_min": run.sde.t_min,
        "t_max": run.sde.t_max, "levels": run.levels, **made_by,
    }  # fmt: skip
    path = output_path(output, workdir / f"score_{split}.json", made_by)
    return {**lines_of(table), "files": write(path, report, run, sets)}


def _estimators(run: Run, options: Sequence[str] | None, tolerance: float | None) -> list[str]:
    """A bound, and "ode" if it is among the options."""
    own = "dsm" if run.dequantised else "elbo"
    names = [own] if options is None else [options] if isinstance(options, str) else list(options)
    bounds = [name for name in names if name in BOUNDS] or [own]
    if not set(names) <= {*BOUNDS, "ode"} or len(bounds) > 1 or len(set(names)) < len(names):
        raise ValueError(
            f"expected --estimators of one bound, elbo or dsm, and perhaps ode, got {', '.join(names)!r}: for this run "
            f"{own} or {own},ode"
        )
    if tolerance is not None and ("ode" not in names or not tolerance > 0):
        raise ValueError(
            f"expected a --tolerance above 0 for the solver of ode, got {tolerance} with {', '.join(names)}: leave it "
            f"out, or give --estimators={own},ode"
        )
    return [*bounds, *(["ode"] if "ode" in names else [])]


def _opened(
    trained: Trained, name: str, data: str | None, split: str, num: int, label: str | int | None,
    settings: dict[str, Any],
) -> Scored:  # fmt: skip
    """Images of a split of `data`, by default of the data before, and their scorer."""
    run = trained.run.on(data)
    images = Images.of(run.dataset(split), num, settings["seed"])
    conditioning = data_conditioning(run, images.data, label)
    scorer = DatasetScorer(
        trained.denoiser, run.sde, images.stored if run.autoencoder is None else run.centred(images.stored),
        run.levels, GaussianPrior.standard(run.sde), cond=of_rows(conditioning.cond, run.device), low=run.low,
        high=run.high, device=run.device, details=True, **settings,
    )  # fmt: skip
    return Scored(name, images, scorer, conditioning.described)


def _evaluate(sets: Sequence[Scored], names: Sequence[str], batch: int, tolerance: float) -> None:
    """Fill the columns of each set, in batches. The solver of the flow is chosen on the first set, for all."""
    if "ode" in names:
        first = sets[0].scorer
        count = min(TRIAL_SAMPLES, len(first.stored))
        with progress_bar("choose", count, unit="image") as bar:
            first.choose(tolerance, True, bar.part(count), batch=batch)
        for each in sets[1:]:
            each.scorer.plan, each.scorer.divergence = first.plan, first.divergence
    with progress_bar("score", sum(len(each.scorer.stored) for each in sets) * len(names), unit="image") as bar:
        for each in sets:
            for name in names:
                each.columns |= _columns(each, name, batch, bar)


def _columns(each: Scored, name: str, batch: int, bar: Bar) -> dict[str, NDArray[Any]]:
    """An estimator's columns, of which only those of maps have a number for each value of the data."""
    keys = {name, f"{name}_error", f"{name}_errors"} | ({f"{name}_each"} if each.name != "training" else set())
    parts, total = list[dict[str, NDArray[Any]]](), len(each.scorer.stored)
    for start in range(0, total, batch):
        rows = slice(start, min(start + batch, total))
        columns = getattr(each.scorer, name)(rows, bar.part(rows.stop - rows.start))
        parts.append({key: column.numpy() for key, column in columns.items() if key in keys})
        if f"{name}_each" in parts[-1]:
            parts[-1][f"{name}_each"] = parts[-1][f"{name}_each"].astype(np.float32)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _score(sets: Sequence[Scored], names: Sequence[str]) -> None:
    """Fill the scores of each set; the first is of training images."""
    training, bound = sets[0], names[0]
    for each in sets:
        each.log_errors = log_errors(each.columns[f"{bound}_errors"], BANDS)
        each.scores = {"bits": -each.columns[bound] / each.scorer.unit}
        if "ode" in names:
            each.scores["ode"] = -each.columns["ode"] / each.scorer.unit
        if each.scorer.levels is not None:
            codec = plain_lengths(np.asarray(each.images.data.x), each.scorer.levels) / each.scorer.dims
            each.scores |= {
                "codec" if name == "bits" else f"{name}_codec": values - codec for name, values in each.scores.items()
            }
    fit = GaussianFit.of(training.log_errors)
    for each in sets:
        distance = fit.left_out if each is training else fit
        scores = {**each.scores, "errors": distance(each.log_errors)}
        scores["typicality"] = typicality(scores["bits"], training.scores["bits"])
        if "ode" in scores:
            scores["ode_typicality"] = typicality(scores["ode"], training.scores["ode"])
        each.scores = {key: scores[key] for key in MEANINGS if key in scores}
