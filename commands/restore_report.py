"""Numbers and pictures of restored images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scorefield.commands.restore_draws import Draws
from scorefield.commands.restore_problem import OF_RANKS, Measured
from scorefield.evaluation import plot_rows, posterior
from scorefield.evaluation.reconstruction import psnr, ssim
from scorefield.solvers import effective_sample_size
from scorefield.solvers.noise import PerSampleNoise

SHOWN, SAMPLES = 16, 3  # images and samples of each in a picture
BINS = 10  # of a rank histogram, at most
HIGHEST = 100.0  # decibels: equal images have an infinite PSNR


@dataclass(frozen=True)
class Restored:
    """Restored images, and their numbers.

    Args:
        stored: the samples as the data set stores values, (N, S, *D).
        mean: of them, (N, *D) float32.
        std: of them, (N, *D) float32.
        numbers: for a report.
    """

    stored: Tensor
    mean: Tensor
    std: Tensor
    numbers: dict[str, Any]


def restored(problem: Measured, draws: Draws, seed: int, log_weights: Tensor | None = None) -> Restored:
    """What the samples are, and how right they are.

    `residual` is of samples before they are rounded to levels; see `evaluation.posterior`. `spread` is the root mean
    variance of the samples' values, in the model's values. With a truth there are `error`, the root mean square error
    of the mean, PSNR and SSIM of images, and the coverage of 90% intervals with the histogram of ranks. Spread, error
    and coverage are over the values that a mask hides, or over all for other tasks.

    Args:
        problem: the measurements.
        draws: the samples.
        seed: of the ranks' ties.
        log_weights: of the samples, (N, S); equal by default.
    """
    run = problem.run
    stored = run.to_stored(draws.x.flatten(0, 1)).reshape(*draws.x.shape[:2], *run.data.shape)
    mean, std = posterior.moments(stored, log_weights)
    unit = 1.0 if run.data.levels is None else (run.high - run.low) / run.data.levels
    where = torch.ones(1, *run.data.shape, dtype=torch.bool) if problem.hidden is None else problem.hidden
    numbers: dict[str, Any] = {"residual": float(_residual(problem, draws.x).mean())}
    numbers["spread"] = unit * _rms(std, where)
    if problem.truth is not None:
        numbers |= _with_truth(problem, stored, mean, log_weights, where, unit, seed)
    if log_weights is not None:
        numbers["ess"] = float(effective_sample_size(log_weights.double()).mean())
    if draws.least_ess is not None:
        numbers["least_particle_ess"] = float(draws.least_ess.mean())
    if draws.log_evidence is not None:
        numbers["log_evidence"] = float(_log_mean(draws.log_evidence).mean())
        if draws.log_evidence.shape[1] > 1:
            numbers["log_evidence_deviation"] = float(draws.log_evidence.std(1).mean())
    numbers |= {"forwards": draws.forwards, "seconds": round(draws.seconds, 2)}
    return Restored(stored, mean.float(), std.float(), numbers)


def picture(problem: Measured, rows: Mapping[str, Tensor], path: Path) -> Path:
    """A picture with the truth, the measurement and named rows of images (N, *D) as they are stored."""
    run, shown = problem.run, {}
    if problem.truth is not None:
        shown["truth"] = problem.truth[:SHOWN].float()
    shown |= {name: x[:SHOWN].float() for name, x in rows.items()}
    sizes = [len(x) for x in shown.values()]
    viewable = dict(zip(shown, torch.split(run.viewable(torch.cat(list(shown.values()))), sizes), strict=True))
    measured = _viewable_measurement(problem)
    if measured is not None:
        first = {"truth": viewable.pop("truth")} if "truth" in viewable else {}
        viewable = {**first, "measurement": measured, **viewable}
    plot_rows(viewable, path)
    return path


def rows_of_samples(problem: Measured, found: Restored) -> dict[str, Tensor]:
    """Samples, mean and standard deviation, for `picture`. The largest standard deviation is white."""
    count = found.stored.shape[1]
    if len(problem.run.data.shape) != 3:
        return {"samples": found.stored.flatten(0, 1), "mean": found.mean}
    rows = {f"sample {s}": found.stored[:, s] for s in range(min(SAMPLES, count))}
    rows["mean"] = found.mean
    if count > 1:
        levels, largest = problem.run.data.levels, float(found.std[:SHOWN].max())
        white = float(found.stored.max()) if levels is None else levels - 1
        low = float(found.stored.min()) if levels is None else 0.0
        name = f"standard deviation (white is {largest:.3g})"
        rows[name] = low + found.std / max(largest, 1e-12) * (white - low)
    return rows


def _with_truth(
    problem: Measured, stored: Tensor, mean: Tensor, log_weights: Tensor | None, where: Tensor, unit: float, seed: int
) -> dict[str, Any]:
    assert problem.truth is not None
    run, truth = problem.run, problem.truth
    numbers: dict[str, Any] = {"error": unit * _rms(mean - truth.double(), where)}
    if len(run.data.shape) == 3:
        span = float(run.data.levels - 1) if run.data.levels is not None else run.high - run.low
        each = truth.repeat_interleave(stored.shape[1], 0)
        pairs = {"": (mean, truth), "_of_samples": (stored.flatten(0, 1), each)}
        for name, (x, exact) in pairs.items():
            x, exact = x.double(), exact.double()
            numbers[f"psnr{name}"] = float(psnr(x, exact, span).clamp(max=HIGHEST).mean())
            numbers[f"ssim{name}"] = float(ssim(x, exact, span).mean())
    uniform = PerSampleNoise(seed, range(len(truth)), (OF_RANKS,)).uniform(torch.empty(truth.shape))
    ranks = posterior.randomised_ranks(truth.double(), stored.double(), uniform, log_weights)
    covered = posterior.coverage(ranks, where)
    numbers["coverage"] = float(covered.mean())
    if len(covered) > 1:
        numbers["coverage_error"] = float(covered.std()) / math.sqrt(len(covered))
    bins = min(BINS, stored.shape[1] + 1)
    numbers["rank_histogram"] = posterior.rank_histogram(ranks, bins, where).tolist()
    return numbers


def _residual(problem: Measured, x: Tensor) -> Tensor:
    """Of each sample, (N, S)."""
    device, found = problem.run.device, []
    y = problem.y.repeat_interleave(x.shape[1], 0)
    with torch.no_grad():
        for part, measured in zip(torch.split(x.flatten(0, 1), 256), torch.split(y, 256), strict=True):
            predicted = problem.of_model(part.to(device)).cpu()
            found.append(posterior.residual(measured, predicted, problem.noise_std))
    return torch.cat(found).reshape(x.shape[:2])


def _viewable_measurement(problem: Measured) -> Tensor | None:
    """The measurements as images of the data's size within [0, 1], or None where they are none."""
    run, y = problem.run, problem.y[:SHOWN].to(problem.run.device)
    if len(run.data.shape) != 3:
        return None
    images = problem.measurement.picture(y)
    if images is None:
        return None
    images = (images.float().cpu() - run.low) / (run.high - run.low)
    return interpolate(images, size=run.data.shape[1:], mode="nearest")


def _rms(x: Tensor, where: Tensor) -> float:
    square = x.double().square()
    return float(square[where.expand_as(square)].mean().sqrt())


def _log_mean(log_evidence: Tensor) -> Tensor:
    return log_evidence.double().logsumexp(1) - math.log(log_evidence.shape[1])
