"""Edit images: forget a part of them and sample it anew, or change their class."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.conditioning import Conditioning, data_conditioning
from scorefield.commands.flow import GRID, along_flow, checked_times
from scorefield.commands.generate import grid as grid_of
from scorefield.commands.generate import of_rows, prepared
from scorefield.commands.guidance import Guidance, guidance_of
from scorefield.commands.images import Images, chosen_images
from scorefield.commands.labels import class_number
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.run import Run
from scorefield.commands.trained import Trained, open_trained
from scorefield.configs import build
from scorefield.evaluation import plot_rows
from scorefield.solvers import PerSampleNoise, Solver, sdedit
from scorefield.training.data import Dataset

STRENGTH, STEPS = 0.5, 50
SHOWN = 16  # images in the picture


def edit(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    split: str | None = None,
    num: int | None = None,
    strength: float | None = None,
    samples: int | None = None,
    label: str | int | None = None,
    from_label: str | int | None = None,
    to_label: str | int | None = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 256,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Edited images to an .npz of `x` (N, samples, *D), the `input` (N, *D) and `label`, with a picture and a report.

    The images are those of `input` (see `read_input`), or `num` of a split, by default 8.

    Without `to_label` it is SDEdit. The image is noised to `strength`, and `samples` draws go on from there, under
    `label`, or under no class where the run can do without. At the strength 0 the input comes back; 0.5 is as much
    noise as signal; at 1 the input is forgotten.

    With `to_label` each image is encoded under `from_label`, by default its own class, and decoded under `to_label`,
    with `guidance`. With `split` the images are of the class `from_label`. The default solver, belm, gives the image
    back if the class is the same.

    Raises:
        ValueError: if there is no trained run, the images do not fit it, or an option does not.
    """
    at_least(1, num=num, samples=samples, batch=batch, steps=steps)
    at_least(0, seed=seed)
    check_output(output, ".npz")
    _check(strength, samples, label, from_label, to_label)
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("edit")
    guiding = guidance_of(trained, guidance=guidance, interval=guidance_interval)
    images = _images(trained.run, input, split, num, seed, from_label)
    sampling = {
        "solver": solver or ("stochastic_dpm" if to_label is None else "belm"), "grid": grid or GRID, "steps": steps,
    }  # fmt: skip
    began = time.perf_counter()
    if to_label is None:
        draws, how = samples or 1, STRENGTH if strength is None else strength
        given = _one_class(trained.run, images, label, guidance)
        x = _noised(trained, guiding, images, given, sampling, how, draws, seed, batch)
        made_by: dict[str, Any] = {"strength": how, "samples": draws, **given.described}
    else:
        given = _given(trained.run, images, to_label)
        before = _given(trained.run, images, from_label)
        x = _reclassed(trained, guiding, images, before, given, sampling, batch)
        made_by = {"from": before.described, "to": given.described}
    seconds = time.perf_counter() - began

    run, stored = trained.run, images.stored
    back = run.to_stored(x.flatten(0, 1)).reshape(*x.shape[:2], *stored.shape[1:])
    settings = {
        "num": len(stored), "images": images.described, "data": images.data.name,
        "data_sha256": images.data.fingerprint, **made_by, **sampling, "guidance": guidance, "seed": seed,
        **guiding.described, **trained.described,
    }  # fmt: skip
    path = output_path(output, workdir / "edited.npz", settings)
    write_arrays(path, x=back, input=stored, label=given.label, index=images.index)
    rows = {
        "input": stored,
        **{f"edited {i + 1}" if x.shape[1] > 1 else "edited": back[:, i] for i in range(x.shape[1])},
    }
    plot_rows({name: run.viewable(row[:SHOWN]) for name, row in rows.items()}, picture := path.with_suffix(".png"))
    report = write_json(path.with_suffix(".json"), {**settings, "seconds": round(seconds, 2)})
    return {"files": [str(path), str(picture), str(report)]}


def _check(strength: float | None, samples: int | None, label: object, from_label: object, to_label: object) -> None:
    """Raises ValueError for a strength that is no share, or options of both kinds of editing."""
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"expected --strength within 0 .. 1, got {strength}: 0.5 is as much noise as signal")
    if to_label is None and from_label is not None:
        raise ValueError(f"expected --to_label beside --from_label, got --from_label={from_label} alone: give both")
    given = {"strength": strength, "samples": samples, "label": label}
    odd = [f"--{name}" for name, value in given.items() if value is not None]
    if to_label is not None and odd:
        raise ValueError(f"expected no {odd[0]} beside --to_label, which encodes and decodes once: leave one out")


def _images(
    run: Run, source: str | None, split: str | None, num: int | None, seed: int, from_label: str | int | None
) -> Images:
    """The images to edit; those of a split are of the class `from_label`."""
    if source is not None or from_label is None or run.num_classes is None:
        return chosen_images(run, source, split, num, seed, default=8)
    dataset, number = run.dataset(split or "test"), class_number(run, from_label)
    rows = np.flatnonzero(np.asarray(dataset.label) == number) if dataset.label is not None else np.arange(0)
    if not len(rows):
        raise ValueError(f"expected images of class {from_label} in {dataset.name}, found none: give --input")
    images = Images.of(dataset.at(rows), min(num or 8, len(rows)), seed)
    return dataclasses.replace(images, index=rows[images.index], described=f"class {from_label}, {images.described}")


def _one_class(run: Run, images: Images, label: str | int | None, guidance: float) -> Conditioning:
    """The conditioning of SDEdit: `label`; or none, but for a network that needs one or a guided one."""
    if label is None and not run.label_required and guidance == 1.0 and run.num_classes is not None:
        given = data_conditioning(run, _unlabelled(images.data))
        return dataclasses.replace(given, cond={key: value for key, value in given.cond.items() if key != "label"})
    return _given(run, images, label)


def _given(run: Run, images: Images, label: str | int | None) -> Conditioning:
    """The conditioning of the images, of a class that may be another than their own."""
    data = images.data if label is None else _unlabelled(images.data)
    return data_conditioning(run, data, label)


def _unlabelled(data: Dataset) -> Dataset:
    return dataclasses.replace(data, label=None, num_classes=None, class_names=())


def _noised(
    trained: Trained, guiding: Guidance, images: Images, given: Conditioning, sampling: dict[str, Any],
    strength: float, samples: int, seed: int, batch: int,
) -> Tensor:  # fmt: skip
    """SDEdit, (N, samples, *D): draw j of image i has the noise of number i * samples + j."""
    run, x0 = trained.run, trained.run.centred(images.stored)
    count, ts = len(x0) * samples, grid_of(run, sampling)
    solver: Solver = build.build(build.SOLVERS, sampling["solver"])
    model, parts = guiding(trained.denoiser), []
    with progress_bar("edit", count) as bar:
        for first in range(0, count, batch):
            number = torch.arange(first, min(first + batch, count))
            rows = number // samples
            cond = prepared(trained.denoiser, of_rows(given.take(rows), run.device), run.shape)
            x = sdedit(
                model, run.sde, x0[rows].to(run.device), strength, solver=solver, grid=ts, cond=cond,
                noise=PerSampleNoise(seed, number.tolist()),
            )  # fmt: skip
            bar.skip(len(number))
            parts.append(x.cpu())
    x = torch.cat(parts)
    if not bool(x.isfinite().all()):
        raise ValueError(f"{solver} gave values that are not finite: use more --steps, or another --solver")
    return x.reshape(len(x0), samples, *x0.shape[1:])


def _reclassed(
    trained: Trained, guiding: Guidance, images: Images, before: Conditioning, after: Conditioning,
    sampling: dict[str, Any], batch: int,
) -> Tensor:  # fmt: skip
    """Encoded under one class and decoded under another, (N, 1, *D)."""
    run, x0 = trained.run, trained.run.centred(images.stored).to(trained.run.device)
    ts = checked_times(run, sampling, batch)
    options: dict[str, Any] = {"batch": batch, "ts": ts}
    latent, pair = along_flow(run, trained.denoiser, x0, sampling, up=True, cond=before.cond, **options)
    guided = guiding(trained.denoiser)
    x, _ = along_flow(run, guided, latent, sampling, up=False, cond=after.cond, before=pair, **options)
    return x.unsqueeze(1)
