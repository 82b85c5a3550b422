"""Restore images of a run from measurements: samples of their posteriors, with the posteriors' error."""

from pathlib import Path
from typing import Any

from scorefield.commands.arguments import at_least
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.restore_draws import certified, draw, measured_variance
from scorefield.commands.restore_problem import measured as measured_images
from scorefield.commands.restore_report import picture, restored, rows_of_samples
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.configs.methods import Method

METHOD, GRID, STEPS, SAMPLES = "twisted", "soft_clipped", 50, 8
LEAST_SHARE = 0.05  # of a certificate's samples that its weights should rest on
SAID = 4  # digits of a number that is printed


def restore(
    workdir: Path,
    *,
    task: str | None = None,
    noise: float = 0.05,
    method: str = METHOD,
    samples: int = SAMPLES,
    num: int | None = None,
    input: str | None = None,  # noqa: A002 - the flag's name
    mask: str | None = None,
    measured: bool | None = None,
    data: str | None = None,
    split: str | None = None,
    label: str | int | None = None,
    caption: str | None = None,
    solver: str | None = None,
    grid: str = GRID,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 64,
    certify: bool = False,
    tile: int = 0,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Samples of x given  y = A(x) + noise n,  for images of a split or of --input, to an .npz, a picture and a JSON.

    The images are measured by --task, with noise from a stream of each image. --mask is an image that is white where
    pixels are unknown: the others are the measurement as they are. With --measured the file of --input is y itself:
    images of the measured size, or an .npy of values as the model's.

    The .npz holds `samples` (N, S, *D) as the data is stored, their `mean` and `std`, `y`, the `truth` where it is
    known, and `x`, the first sample of each. With particles it has their `log_evidence` (N, S) too.

    Printed are the residual chi-squared over m (1 is right; the largest error where the noise is 0), the spread, with a
    truth PSNR, SSIM and the coverage of 90% intervals (0.9 is right), and the network's evaluations of a sample.
    Classes and captions are the images' own, unless --label or --caption gives one for all.

    With --certify the samples are those of a guided flow, with exact `log_weights`, for at most 300 dimensions. All
    numbers but the residual are then weighted, and the effective sample size says how good the guidance was.

    Raises:
        ValueError: if there is no trained run, or an option does not fit it.
    """
    at_least(1, samples=samples, batch=batch, steps=steps)
    at_least(0, seed=seed)
    check_output(output, ".npz")
    chosen: Method = build.build(build.METHODS, method)
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("restore")
    run = trained.run.on(data).in_tiles_of(tile)
    problem = measured_images(
        run, task=task, noise=noise, source=input, mask=mask, is_measured=measured, split=split, num=num, seed=seed,
        label=label, caption=caption,
    )  # fmt: skip
    settings = {
        **problem.described, "method": method, "samples": samples, "solver": solver, "grid": grid, "steps": steps,
        "seed": seed, "certify": certify, **trained.described,
    }  # fmt: skip
    variance = measured_variance(run, trained.denoiser) if chosen.uses_variance else None
    by: dict[str, Any] = {"grid": grid, "steps": steps, "samples": samples, "seed": seed, "batch": batch}
    log_weights = None
    if certify:
        draws, log_weights = certified(trained.denoiser, problem, chosen, **by, variance=variance)
    else:
        draws = draw(trained.denoiser, problem, chosen, **by, solver=solver, variance=variance)
    found = restored(problem, draws, seed, log_weights)
    if certify and found.numbers["ess"] < LEAST_SHARE * samples:
        on_stderr(
            f"the weights rest on {found.numbers['ess']:.1f} of {samples} samples, too few for the evidence: use more "
            "--samples, --method=jacobian_free, or no --certify"
        )

    path = output_path(output, workdir / "restored.npz", settings)
    write_arrays(
        path, x=found.stored[:, 0], samples=found.stored, mean=found.mean, std=found.std, y=problem.y,
        truth=problem.truth, log_evidence=draws.log_evidence, log_weights=log_weights, label=problem.given.label,
        index=problem.index,
    )  # fmt: skip
    drawn = picture(problem, rows_of_samples(problem, found), path.with_suffix(".png"))
    report = write_json(path.with_suffix(".json"), {**settings, **found.numbers})
    said = {name: _said(value) for name, value in found.numbers.items()}
    return {**said, "files": [str(path), str(drawn), str(report)]}


def _said(value: float | list[float]) -> float | str:
    if isinstance(value, list):
        return " ".join(f"{share:.3f}" for share in value)
    return float(f"{value:.{SAID}g}")
