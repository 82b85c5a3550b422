"""Interpolate between two images, on the sphere of their latents."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.flow import GRID, SOLVER, STEPS, along_flow, checked_times
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.run import stored_tensor
from scorefield.commands.trained import open_trained
from scorefield.evaluation import plot_rows


def interpolate(
    workdir: Path,
    *,
    pair: tuple[int, int] = (0, 1),
    split: str = "test",
    num: int = 9,
    label: str | int | None = None,
    solver: str = SOLVER,
    grid: str = GRID,
    steps: int = STEPS,
    batch: int = 256,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Write `num` images from one image of a split to another, both included.

    Both are encoded, interpolated on the sphere, and decoded.

    Raises:
        ValueError: if there is no trained run, or no such images.
    """
    if num < 2:
        raise ValueError(f"expected --num of at least 2, for both images, got {num}")
    check_output(output, ".npz")
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("interpolate")
    run = trained.run
    options = {"solver": solver, "grid": grid, "steps": steps}
    ts = checked_times(run, options, batch)
    dataset = run.dataset(split)
    if not all(0 <= i < len(dataset) for i in pair):
        raise ValueError(f"expected --pair of images 0 .. {len(dataset) - 1} of the {split} split, got {pair}")
    both = dataset.at(np.array(pair))
    ends = run.centred(stored_tensor(both)).to(run.device)
    given = data_conditioning(run, both, label)
    settings = {
        "pair": list(pair), "split": split, "num": num, "data_sha256": dataset.fingerprint, **given.described,
        **options, **trained.described,
    }  # fmt: skip

    latents, _ = along_flow(run, trained.denoiser, ends, options, up=True, batch=batch, cond=given.cond, ts=ts)
    path_of_latents = spherical(latents[0], latents[1], torch.linspace(0, 1, num, device=latents.device))
    nearest = (torch.arange(num) >= num / 2).long()
    cond = given.take(nearest)
    x0, _ = along_flow(run, trained.denoiser, path_of_latents, options, up=False, batch=batch, cond=cond, ts=ts)
    back = run.to_stored(x0)

    path = output_path(output, workdir / "interpolation.npz", settings)
    write_arrays(path, x=back, latent=path_of_latents)
    picture = path.with_suffix(".png")
    seen = run.viewable(torch.cat([run.to_stored(ends[:1]), back, run.to_stored(ends[1:])]))
    heads = [f"image {pair[0]}", *(f"{i / (num - 1):.2g}" for i in range(num)), f"image {pair[1]}"]
    plot_rows({"interpolated": seen}, picture, heads=heads)
    report = write_json(path.with_suffix(".json"), settings)
    return {"files": [str(path), str(picture), str(report)]}


def spherical(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b, with theta the angle between them: (W, *D).

    Song, Meng and Ermon 2021, Eq. 67 (after Shoemake 1985). Parallel vectors are mixed linearly.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    theta = cosine.acos()
    w = weights.to(a).reshape(-1, *(1,) * a.ndim)
    if float(theta.sin()) < 1e-6:
        return torch.lerp(a, b, w)
    return (((1 - w) * theta).sin() * a + (w * theta).sin() * b) / theta.sin()
