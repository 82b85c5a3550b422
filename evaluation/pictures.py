"""Samples as matplotlib figures, saved where a path is given: images as grids and rows, points, series and vectors.

A notebook shows the figure that a function returns. The figures need no screen, and change no setting of matplotlib.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

# In pixels: smaller images are enlarged to SIDE and grids to about PANEL, by an integer factor, up to LARGEST.
SIDE, PANEL, LARGEST = 64, 400, 4096
GAP, LINE, TITLE, TICKS = 10, 2, 24, 26

LETTER, WRAP = 7, 36  # pixels of a letter, and letters of a line of a row's name

# Vectors of SERIES entries or more are drawn as curves, CURVES in a panel.
SERIES, CURVES = 16, 32

# In an overview pictures are shrunk to SHOWN pixels. Those WIDE times as wide as high have their own line.
SHOWN, WIDE = 640, 2.5


def plot_samples(
    samples: Tensor | Mapping[str, Tensor],
    path: Path | None = None,
    *,
    columns: int | None = None,
    across: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Figure:
    """Samples (N, *D) with values in [low, high], or named batches of them, each a panel under its name.

    Images (C, H, W) make a grid (of their first channel unless C is 3), and volumes one of their middle slices. Points
    (2,) make scatter plots on common axes, as do the first two entries of longer vectors. From 16 entries on, vectors
    are curves, and (C, L) are curves of their first channel.

    Args:
        samples: the batches, all of one shape of a sample.
        path: a .png to write.
        columns: of a grid of images, by default the square root of their number, rounded up.
        across: panels beside one another, by default all.
        low: what is black.
        high: what is white.
    """
    batches = {"": samples} if isinstance(samples, Tensor) else samples
    panels = {name: _drawable(x, low, high) for name, x in batches.items()}
    first = next(iter(panels.values()))
    images = first.ndim == 4
    height = width = PANEL
    grids = {}
    if images:
        columns = columns or math.ceil(math.sqrt(len(first)))
        grid_side = max(columns * first.shape[-1], math.ceil(len(first) / columns) * first.shape[-2])
        factor = enlargement(max(first.shape[-2:]), grid_side, PANEL)
        grids = {name: image_grid(x, columns, factor) for name, x in panels.items()}
        height, width = next(iter(grids.values())).shape[-2:]
    across, title = across or len(panels), TITLE if any(panels) else 0
    size = across * (width + GAP) + GAP, math.ceil(len(panels) / across) * (height + title + GAP) + GAP
    figure, axes = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100), list[Axes]()
    for i, (name, x) in enumerate(panels.items()):
        left, top = GAP + i % across * (width + GAP), GAP + title + i // across * (height + title + GAP)
        if images:
            axes.append(_axes(figure, size, (left, top, width, height)))
            _show(axes[-1], grids[name])
        else:
            box, first_axes = (left + TICKS, top, width - TICKS, height - TICKS), axes[0] if axes else None
            axes.append(_axes(figure, size, box, sharex=first_axes, sharey=first_axes))
            _draw(axes[-1], x)
        axes[-1].set_title(name, fontsize=9, pad=4)
    return saved(figure, path)


def plot_rows(
    rows: Mapping[str, Tensor],
    path: Path | None = None,
    *,
    heads: Sequence[str] = (),
    low: float = 0.0,
    high: float = 1.0,
) -> Figure:
    """Named batches of images (N, C, H, W), each a row beside its name. Other samples are panels: see `plot_samples`.

    Args:
        rows: the batches, of one shape of a sample.
        path: a .png to write.
        heads: what stands above the columns.
        low: what is black.
        high: what is white.
    """
    panels = {name: _drawable(x, low, high) for name, x in rows.items()}
    first = next(iter(panels.values()))
    if first.ndim != 4:
        return plot_samples(rows, path, across=math.ceil(math.sqrt(len(rows))), low=low, high=high)
    factor = enlargement(max(first.shape[-2:]), max(map(len, panels.values())) * first.shape[-1])
    strips = {textwrap.fill(name, WRAP): image_grid(x, len(x), factor) for name, x in panels.items()}
    longest = max(strip.shape[-1] for strip in strips.values())
    margin = LETTER * max(len(line) for name in strips for line in name.splitlines() or [""]) + 2 * GAP
    height, top = next(iter(strips.values())).shape[-2], GAP + (TITLE if heads else 0)
    size = margin + longest + GAP, top + len(strips) * (height + GAP // 2) + GAP // 2
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    for i, head in enumerate(heads):
        across = margin + (i + 0.5) * (first.shape[-1] * factor + LINE)
        figure.text(across / size[0], 1 - (top - 4) / size[1], head, ha="center", va="bottom", fontsize=8)
    for i, (name, strip) in enumerate(strips.items()):
        begins = top + i * (height + GAP // 2)
        _show(_axes(figure, size, (margin, begins, strip.shape[-1], height)), strip)
        where = (margin - GAP) / size[0], 1 - (begins + height / 2) / size[1]
        figure.text(*where, name, ha="right", va="center", fontsize=9)
    return saved(figure, path)


def plot_overview(pictures: Mapping[str, Path], path: Path | None = None, *, across: int = 3) -> Figure:
    """Pictures from files, each under its caption, on one sheet.

    Args:
        pictures: files that Pillow reads, by their captions.
        path: a .png to write.
        across: pictures beside one another.
    """
    lines, longest = list[list[tuple[str, Image.Image, int]]](), across * (SHOWN + GAP) - GAP
    opened = [(caption, Image.open(file).convert("RGB")) for caption, file in pictures.items()]
    for caption, picture in sorted(opened, key=lambda each: each[1].width > WIDE * each[1].height):
        wide = picture.width > WIDE * picture.height
        picture.thumbnail((longest if wide else SHOWN, SHOWN))
        if wide or not lines or len(lines[-1]) == across or lines[-1][0][2] > SHOWN:
            lines.append([])
        lines[-1].append((caption, picture, longest if wide else SHOWN))
    heights = [max(picture.height for _, picture, _ in line) for line in lines]
    size = longest + 2 * GAP, sum(height + TITLE + GAP for height in heights) + GAP
    figure, top = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100), GAP
    for line, height in zip(lines, heights, strict=True):
        for i, (caption, picture, room) in enumerate(line):
            left = GAP + i * (SHOWN + GAP) + (room - picture.width) // 2
            axes = _axes(figure, size, (left, top + TITLE, picture.width, picture.height))
            axes.imshow(picture, aspect="auto", interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(caption, fontsize=10, pad=4)
        top += height + TITLE + GAP
    return saved(figure, path)


def saved(figure: Figure, path: Path | None) -> Figure:
    """The figure, written to a file where a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=figure.dpi)
    return figure


def image_grid(x: Tensor, columns: int, factor: int = 1) -> Tensor:
    """Images (N, C, H, W) in [0, 1], enlarged by a factor f, as one, with grey lines of l = 2 pixels between.

    Its shape is (1 or 3, rows (f H + l) + l, columns (f W + l) + l).
    """
    x = (x if x.shape[1] == 3 else x[:, :1]).clamp(0, 1)
    x = x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    count, channels, height, width = x.shape
    rows = math.ceil(count / columns)
    grid = torch.full((channels, rows * (height + LINE) + LINE, columns * (width + LINE) + LINE), 0.5)
    for i, image in enumerate(x):
        top, left = i // columns * (height + LINE) + LINE, i % columns * (width + LINE) + LINE
        grid[:, top : top + height, left : left + width] = image
    return grid


def enlargement(side: int, grid_side: int, panel: int = 0) -> int:
    """The factor for images of a side, within a grid whose longer side is `grid_side`, in pixels."""
    factor = max(math.ceil(SIDE / side), round(panel / grid_side))
    return max(1, min(factor, LARGEST // grid_side))


def count_values(axes: Axes, values: Tensor) -> None:
    """Draw a histogram of values (N,), whose counts are whole numbers."""
    axes.hist(values.numpy(), bins=40)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _drawable(x: Tensor, low: float, high: float) -> Tensor:
    """Images (N, C, H, W) within [0, 1], or other samples as they are."""
    x = x.detach().float().cpu()
    if x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    return (x - low) / (high - low) if x.ndim == 4 else x


def _axes(figure: Figure, size: tuple[int, int], box: tuple[int, int, int, int], **shared: Axes | None) -> Axes:
    """Axes at (left, top, width, height), in pixels of a figure of this size."""
    left, top, width, height = box
    total_width, total_height = size
    bottom = total_height - top - height
    share = left / total_width, bottom / total_height, width / total_width, height / total_height
    keywords: dict[str, Any] = {**shared}
    return figure.add_axes(share, **keywords)


def _show(axes: Axes, grid: Tensor) -> None:
    axes.set_axis_off()
    image = grid.permute(1, 2, 0).squeeze(-1)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")


def _draw(axes: Axes, x: Tensor) -> None:
    """Vectors (N, D) or series (N, C, L): a scatter plot, curves, or a histogram."""
    axes.tick_params(labelsize=7)
    x = x[:, 0] if x.ndim > 2 else x
    if x.shape[1] == 1:
        count_values(axes, x[:, 0])
    elif x.shape[1] < SERIES:
        axes.scatter(x[:, 0], x[:, 1], s=4, linewidths=0)
    else:
        axes.plot(x[:CURVES].T, linewidth=0.8, alpha=0.7)
