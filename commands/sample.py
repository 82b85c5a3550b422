"""Draw samples of a trained run."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scorefield.commands.arguments import at_least
from scorefield.commands.budget import check_budget, within
from scorefield.commands.generate import generate
from scorefield.commands.guidance import guidance_of
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.run import Run
from scorefield.commands.sampling import described, sampling_of
from scorefield.commands.trained import open_trained
from scorefield.evaluation import plot_rows, plot_samples
from scorefield.models import CountCalls
from scorefield.solvers import Trajectory
from scorefield.training.distributed.ranks import Ranks


def sample(
    workdir: Path,
    *,
    num: int = 64,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    budget: int | None = None,
    denoise: bool | None = None,
    seed: int = 0,
    batch: int = 256,
    label: str | int | None = None,
    caption: str | None = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float | None = None,
    guidance_parallel: float | None = None,
    guidance_norm: float | None = None,
    guide: str | None = None,
    classifier: float | None = None,
    trajectory: int | None = None,
    tile: int = 0,
    ema: bool = True,
    checkpoint: str | None = None,
    compile: bool = False,  # noqa: A002 - the flag's name
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Samples to an .npz (`x` as the data is stored, (N, *D)), a picture and a JSON beside it.

    The file also has the `label` or the `caption` of each sample, where they have any.

    Options that are left out have the values of the run's configuration; `--solver=tuned` is the setting that
    `--mode=tune` found, or that of `tuned:budget=10`. `budget` takes the most steps that need no more network
    evaluations of a sample, with the last denoising and both halves of guidance. Sample i of a seed does not depend on
    `num` or `batch`. Under torchrun the ranks share the batches, to the same samples; choose `batch` <= num / ranks.

    A latent run decodes its codes in tiles of `tile` codes, if that is not 0.

    With `trajectory=n` the trajectories of the first n samples are written too, of all if there are fewer.
    NAME_trajectory.npz holds `t` (T,), and `x` and `x0` (T, n, *D) in the model's values. Its picture has a column for
    each sample, and rows of x / alpha and of the denoiser's x0.

    Classes are `label`, or each in turn. A run with a conditioner is given `caption`, or the captions, boxes, maps or
    images of the test split. `guidance` is by all conditioning, at the noise levels of `guidance_interval`.
    With `guide`, another run or an earlier checkpoint of this one, it is autoguidance. `classifier` is the scale of
    guidance by the run's noisy classifier (--mode=train_classifier). docs/guidance.md explains them all.

    Raises:
        ValueError: if there is no trained run, or an option does not fit it.
    """
    at_least(1, num=num, batch=batch, steps=steps, budget=budget, trajectory=trajectory)
    check_budget(budget, steps)
    at_least(0, seed=seed)
    if trajectory is not None and min(trajectory, num) > batch:
        raise ValueError(f"expected --trajectory within one batch, got {trajectory} for --batch={batch}")
    ranks = Ranks.of_environment()
    check_output(output, ".npz")
    trained = open_trained(workdir, device, ema, compile, checkpoint=checkpoint)
    run = trained.run.in_tiles_of(tile)
    if trajectory is not None:
        trained.check_one_level("sample --trajectory")
    sampling = sampling_of(run, solver=solver, grid=grid, steps=steps, budget=budget, denoise=denoise, trained=trained)
    guiding = guidance_of(
        trained, guidance=guidance, interval=guidance_interval, rescale=guidance_rescale, parallel=guidance_parallel,
        norm=guidance_norm, guide=guide, classifier=classifier,
    )  # fmt: skip
    conditioning = guiding.conditioning(num, label, caption)
    sampling = within(run, budget, sampling, guiding, conditioning.cond)
    settings = described(sampling) | {
        "label": None,
        **conditioning.described,
        "guidance": guidance,
        "num": num,
        "seed": seed,
        **trained.described,
    }
    settings |= guiding.described

    began = time.perf_counter()
    kept, counted = None if trajectory is None else Trajectory(min(trajectory, num)), CountCalls(trained.denoiser)
    with ranks.failing_together():
        x = generate(
            run, counted, num, sampling=sampling, seed=seed, batch=batch, cond=conditioning.cond, guide=guiding,
            trajectory=kept, ranks=ranks,
        )  # fmt: skip
        nfe = ranks.world * float(ranks.mean(torch.tensor(float(counted.samples), dtype=torch.float64))) / num
    if not ranks.first:
        return {}
    seconds = time.perf_counter() - began

    stored = run.to_stored(x)
    path = output_path(output, workdir / "samples.npz", settings)
    write_arrays(path, x=stored, label=conditioning.label, caption=conditioning.shown or None)
    plot_samples(run.viewable(stored[:256]), picture := path.with_suffix(".png"))
    facts = {"levels": run.data.levels, "nfe": nfe, "seconds": round(seconds, 2)}
    report = write_json(path.with_suffix(".json"), {**settings, **facts})
    files = [path, picture, report, *([] if kept is None else _save_trajectory(run, kept, path))]
    return {"samples_per_second": round(num / seconds, 1), "nfe": nfe, "files": [str(file) for file in files]}


def _save_trajectory(run: Run, kept: Trajectory, path: Path) -> list[Path]:
    """Write the arrays, and a picture of at most twelve of the times."""
    path = path.with_name(f"{path.stem}_trajectory.npz")
    write_arrays(path, t=kept.t, x=kept.x, x0=kept.x0)
    shown = torch.linspace(0, len(kept.t) - 1, min(12, len(kept.t))).round().long()
    alpha = run.sde.scales(kept.t[shown])[0]
    rows = {}
    for i, a in zip(shown.tolist(), alpha.tolist(), strict=True):
        at = f"t = {float(kept.t[i]):.3g}"
        rows[f"{at}: x / alpha"] = run.viewable(run.to_stored(kept.x[i] / a))
        rows[f"{at}: denoised before it"] = run.viewable(run.to_stored(kept.x0[i]))
    plot_rows(rows, picture := path.with_suffix(".png"))
    return [path, picture]
