"""PNG files: images as grids, points as a scatter, anything else as a matrix; curves and bars."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

SCALE = 256  # pixels; a smaller picture is enlarged by an integer factor


def save_pictures(x: Tensor, path: Path, columns: int | None = None, low: float = 0.0, high: float = 1.0) -> Path:
    """Samples (N, *D) with values in [low, high] as one picture.

    Images (C, H, W) make a grid (of their first channel unless C is 3), points (2,) a scatter plot. Other samples are
    the rows of a matrix.
    """
    x = x.detach().float().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    if x.shape[1:] == (2,):
        return _figure(path, lambda axes: axes.scatter(x[:, 0], x[:, 1], s=4, linewidths=0))
    if x.ndim != 4:
        return _figure(path, lambda axes: axes.imshow(x.flatten(1), aspect="auto", vmin=low, vmax=high))
    grid = image_grid((x - low) / (high - low), columns or math.ceil(math.sqrt(len(x))))
    array = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    enlarge = max(1, math.ceil(SCALE / max(picture.size)), 4 if x.shape[-1] < 16 else 2 if x.shape[-1] < 64 else 1)
    picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST).save(path)
    return path


def image_grid(x: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1] as one (1 or 3, rows (H + 1) + 1, columns (W + 1) + 1), with grey lines between."""
    x = (x if x.shape[1] == 3 else x[:, :1]).clamp(0, 1)
    count, channels, height, width = x.shape
    rows = math.ceil(count / columns)
    grid = torch.full((channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 0.5)
    for i, image in enumerate(x):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_rows(rows: Sequence[Tensor], path: Path, low: float = 0.0, high: float = 1.0) -> Path:
    """Batches of one shape (N, *D), each a row of the picture."""
    return save_pictures(torch.cat(list(rows)), path, columns=len(rows[0]), low=low, high=high)


def save_labelled_rows(rows: Mapping[str, Tensor], path: Path, low: float = 0.0, high: float = 1.0) -> Path:
    """Named batches of one shape (N, *D), each a row beside its name; for points, scatter plots side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = next(iter(rows.values())).shape
    points, images = shape[1:] == (2,), len(shape) == 4
    columns = math.ceil(math.sqrt(len(rows))) if points else 1
    lines = math.ceil(len(rows) / columns)
    size = (3 * columns, 3 * lines) if points else (2.5 + 0.6 * shape[0], 0.7 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, dpi=120, layout="constrained", squeeze=False)
    try:
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, (name, batch) in zip(axes.flat, rows.items(), strict=False):
            x = batch.detach().float().cpu()
            if points:
                ax.scatter(x[:, 0], x[:, 1], s=4, linewidths=0)
                ax.set_title(name, fontsize=8)
                continue
            ax.text(-0.01, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=8)
            if images:
                strip = image_grid((x - low) / (high - low), len(x)).permute(1, 2, 0)
                ax.imshow(strip.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                ax.imshow(x.flatten(1), aspect="auto", vmin=low, vmax=high)
        figure.savefig(path)
    finally:
        plt.close(figure)
    return path


def save_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, x: str, y: str, log: str = ""
) -> Path:
    """Named curves (xs, ys) on one pair of axes; `log` names the axes that are logarithmic, as in "xy"."""

    def draw(axes: Axes) -> None:
        for name, (xs, ys) in curves.items():
            axes.plot(xs, ys, label=name, marker="o" if len(xs) < 20 else "")
        axes.set(xlabel=x, ylabel=y, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()

    return _figure(path, draw)


def save_bars(values: Tensor, path: Path, x: str) -> Path:
    """A histogram of values (N,)."""

    def draw(axes: Axes) -> None:
        axes.hist(np.asarray(values.detach().double().cpu()), bins=40)
        axes.set(xlabel=x, ylabel="count")

    return _figure(path, draw)


def _figure(path: Path, draw: Callable[[Axes], object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4), dpi=120, layout="constrained")
    try:
        draw(axes)
        figure.savefig(path)
    finally:
        plt.close(figure)
    return path
