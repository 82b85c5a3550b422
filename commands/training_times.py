"""Measure the density of training times that suits a run: `--mode=grid --for=training`."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from scorefield.commands.arguments import at_least
from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.generate import of_rows
from scorefield.commands.images import Images
from scorefield.commands.outputs import check_output, output_path, write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.trained import Trained
from scorefield.evaluation import plot_curves
from scorefield.sde_lib.denoiser import predict_noise
from scorefield.sde_lib.level_density import LevelDensity, log_snr_ends
from scorefield.training.times import BINS, FLOOR, least_variance

FILE = "training_times.json"
AT_ONCE = 256  # images in the network


@torch.no_grad()
def measure_times(
    trained: Trained, *, num: int, seed: int, label: str | int | None, output: str | None
) -> dict[str, Any]:
    """Write the density of least variance over the log-SNR to WORKDIR/training_times.json, with a picture.

    Each of `num` training images is evaluated once in each bin. The report has the variance of one draw of the
    continuous ELBO's diffusion part, in (nats/dim)^2: of uniform times, and of these.

    Raises:
        ValueError: if the run's data cannot be read, or the network gives no finite error.
    """
    at_least(2, num=num)
    check_output(output, ".json")
    run = trained.run
    dataset = run.dataset("train")
    images = Images.of(dataset, num, seed)
    x0 = run.centred(images.stored)
    given = data_conditioning(run, images.data, label)
    generator = torch.Generator().manual_seed(seed)
    high, low = log_snr_ends(run.sde)
    errors = []
    with progress_bar("measure", BINS, unit="bin") as bar:
        for i in range(BINS):
            position = (i + torch.rand(len(x0), generator=generator, dtype=torch.float64)) / BINS
            t, eps = run.sde.time(high + (low - high) * position), torch.randn(x0.shape, generator=generator)
            parts = []
            for start in range(0, len(x0), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                clean, times, noise = (each[rows].to(run.device) for each in (x0, t, eps))
                noisy, cond = run.sde.perturb(clean, times, noise), of_rows(given.cond, run.device, rows)
                error = predict_noise(trained.denoiser, noisy, *run.sde.scales(times), **cond) - noise
                parts.append(error.double().square().flatten(1).mean(1).cpu())
            errors.append(torch.cat(parts) * (high - low) / 2)
            bar.skip(1)
    losses = torch.stack(errors)
    if not bool(losses.isfinite().all()):
        raise ValueError(f"expected finite errors of the network in {run.workdir}, got NaN or infinity: train it again")
    probability = least_variance(torch.full((BINS,), float(len(x0))), losses.square().sum(1), FLOOR)
    mean, square = losses.mean(), losses.square().mean(1)
    variances = {
        "log_snr": float(square.mean() - mean.square()),
        "measured": float((square / (BINS * probability)).mean() - mean.square()),
    }
    centres = [high + (low - high) * (i + 0.5) / BINS for i in range(BINS)]
    settings = {"num": len(x0), "seed": seed, **given.described, "data": dataset.name, **trained.described}
    path = output_path(output, run.workdir / FILE)  # a fixed name, from which --times=measured reads
    content = {**settings, "log_snr": centres, "probability": probability.tolist(), "variance_of_a_draw": variances}
    report = write_json(path, content)
    density = (probability * BINS).tolist()
    plot_curves(
        {"measured": (centres, density)}, picture := path.with_suffix(".png"), x="log-SNR", y="density of times"
    )
    ratio = variances["log_snr"] / variances["measured"]
    return {
        "variance of a draw": f"{variances['measured']:.4g} (nats/dim)^2 at these times, {variances['log_snr']:.4g} at "
        f"times that are uniform in the log-SNR: {ratio:.3g} times",
        "files": [str(report), str(picture)],
    }


def read_times(workdir: Path) -> LevelDensity:
    """The density that `measure_times` wrote.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = workdir / FILE
    if not path.is_file():
        raise ValueError(
            f"expected measured times in {path}: measure them with --mode=grid --for=training --workdir={workdir}"
        )
    try:
        probability = torch.tensor(json.loads(path.read_text())["probability"], dtype=torch.float64)
        if probability.ndim != 1 or not bool((probability > 0).all()) or not math.isclose(float(probability.sum()), 1):
            raise ValueError("its probabilities are no positive numbers of sum 1")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot read {path} ({error}): measure it again with --mode=grid --for=training") from None
    return LevelDensity(probability)
