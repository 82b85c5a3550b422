"""Trajectories of samples: their states, and the denoiser's predictions."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.commands.report.about import weights_of
from scorefield.commands.report.blocks import Block, Charts, Missing, Picture, Pictures, Section, picture
from scorefield.commands.report.chart import Chart, Curve, chart
from scorefield.commands.report.command_of import command_line
from scorefield.commands.report.found import Found, Report
from scorefield.commands.run import Run
from scorefield.evaluation.pictures import enlargement, image_grid

TIMES, SAMPLES = 12, 4  # in a picture


def trajectories_section(found: Found) -> Section:
    """Trajectories from the newest samples that have them."""
    for report in found.of_mode("sample"):
        file = trajectory_beside(report.path)
        if (points := _of_points(found, report, file)) is not None:
            return Section("trajectories", "Trajectories", [Charts((points,))])
        drawn = _of_images(found, report, file) or _of_others(found, report, file)
        if drawn is not None:
            return Section("trajectories", "Trajectories", [Pictures((drawn,))])
    blocks: list[Block] = []
    if not found.run.sde.needs_code:
        command = command_line("sample", found.workdir, "--trajectory=6")
        blocks.append(Missing("There are no trajectories yet.", command))
    return Section("trajectories", "Trajectories", blocks)


def trajectory_beside(path: Path) -> Path:
    """The file of the trajectories of samples, which may not be there."""
    return path.with_name(f"{path.stem}_trajectory.npz")


def _of_points(found: Found, report: Report, file: Path) -> Chart | None:
    """The ways of points in the plane; None for other data, or a file that does not read."""
    if found.run.data.shape != (2,):
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x = arrays["x"]
        curves = [
            Curve(f"sample {i + 1}", x[:, i, 0].tolist(), x[:, i, 1].tolist(), dots=True, colour=i % 8)
            for i in range(min(2 * SAMPLES, x.shape[1]))
        ]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    caption = f"The states x of samples, from noise to data. {_of(report, file)}"
    return chart("Trajectories of points", curves, x="first coordinate", y="second coordinate", caption=caption)


def _of_others(found: Found, report: Report, file: Path) -> Picture | None:
    """The picture of points, vectors or series that --mode=sample drew."""
    caption = f"The state, x / alpha, and what the denoiser took for the sample before it. {_of(report, file)}"
    return picture(file.with_suffix(".png"), f"trajectories of samples of {found.run.data.name}", caption)


def _of_images(found: Found, report: Report, file: Path) -> Picture | None:
    """A picture with two rows for each sample; None for other data, or a file that does not read."""
    run = found.run
    if len(run.data.shape) != 3:
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            t, x, x0 = (torch.as_tensor(arrays[name]) for name in ("t", "x", "x0"))
        shown = torch.linspace(0, len(t) - 1, min(TIMES, len(t))).round().long()
        states, predictions = (_seen(run, each[shown][:, :SAMPLES]) for each in (x, x0))
    except (OSError, ValueError, KeyError, IndexError, RuntimeError):
        return None
    rows = [each[:, i] for i in range(states.shape[1]) for each in (states, predictions)]
    images = torch.cat(rows)
    grid = image_grid(images, len(shown), enlargement(max(images.shape[-2:]), len(shown) * images.shape[-1]))
    caption = (
        f"Time runs from the left, t = {float(t[shown[0]]):.3g}, to the right, t = {float(t[shown[-1]]):.3g}. Each "
        "sample has two rows: its state x, and below it what the denoiser took for the sample before this time. "
        f"{_of(report, file)}"
    )
    return Picture(_data_uri(grid), f"trajectories of {states.shape[1]} samples of {run.data.name}", caption)


def _seen(run: Run, x: Tensor) -> Tensor:
    """The model's values (T, N, *D) as images within [0, 1]."""
    return run.viewable(run.to_stored(x.flatten(0, 1))).reshape(*x.shape[:2], *run.data.shape)


def _data_uri(grid: Tensor) -> str:
    """A .png of an image (1 or 3, H, W) within [0, 1]."""
    values = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _of(report: Report, file: Path) -> str:
    return f"{file.name}, {weights_of(report)}."
