"""Measure the density of steps that suits a run, on a few of its trajectories."""

from pathlib import Path
from typing import Any

import torch

from scorefield.commands.arguments import at_least
from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.generate import guided, of_rows, prepared
from scorefield.commands.outputs import check_output, output_path, write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.trained import open_trained
from scorefield.commands.training_times import measure_times
from scorefield.evaluation import plot_curves
from scorefield.solvers import PerSampleNoise, step_density


def grid(
    workdir: Path,
    *,
    num: int = 64,
    steps: int = 100,
    order: int = 2,
    seed: int = 0,
    label: str | int | None = None,
    guidance: float = 1.0,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
    purpose: str = "sampling",
) -> dict[str, Any]:
    """Write the density of steps for a solver of an order to WORKDIR/grid.json, with a picture.

    `--grid=optimal` uses it. For "training" it is the density of times instead, see `measure_times`.

    Args:
        workdir: of the run.
        num: number of trajectories, or of training images.
        steps: steps of each trajectory.
        order: order of the solver that the grid is for.
        seed: seed of their noise.
        label: number or name of the class to sample, by default each class in turn.
        guidance: scale of classifier-free guidance.
        ema: use the averaged weights.
        checkpoint: see `find_checkpoint`.
        device: see `open_run`.
        output: another .json file to write.
        purpose: "sampling" or "training".

    Raises:
        ValueError: if there is no trained run, or too few trajectories or steps.
    """
    if purpose not in ("sampling", "training"):
        raise ValueError(f"expected --for of sampling or training, got {purpose!r}")
    if purpose == "training":
        trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
        trained.check_one_level("grid --for=training")
        return measure_times(trained, num=num, seed=seed, label=label, output=output)
    at_least(1, num=num, steps=steps)
    at_least(0, seed=seed)
    if not 1 <= order <= 4:
        raise ValueError(f"expected --order of 1 to 4, got {order}")
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("grid")
    check_output(output, ".json")
    run = trained.run
    conditioning = sampled_conditioning(run, num, label=label, guidance=guidance)
    noise = PerSampleNoise(seed, range(num))
    x = run.sde.prior((num, *run.shape), noise=noise, device=run.device)
    model, cond = (
        guided(trained.denoiser, guidance),
        prepared(trained.denoiser, of_rows(conditioning.cond, run.device), run.shape),
    )
    with torch.no_grad(), progress_bar("grid", num) as bar:
        measured = step_density(model, run.sde, x, cond=cond, order=order, steps=steps, on_step=bar.steps(num))

    settings = {
        "num": num,
        "steps": steps,
        "order": order,
        "seed": seed,
        **conditioning.described,
        "guidance": guidance,
    }
    path = output_path(output, workdir / "grid.json")  # a fixed name, from which --grid=optimal reads
    report = write_json(path, {**settings, **trained.described, **measured._asdict()})
    curve = {"steps": (measured.log_snr, measured.density)}
    plot_curves(curve, picture := path.with_suffix(".png"), x="log-SNR", y="density of steps")
    return {"files": [str(report), str(picture)]}
