"""Curves and histograms as matplotlib figures, saved where a path is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from scorefield.evaluation.pictures import count_values, saved

TICKS = 12  # values of x that are all named


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path | None = None,
    *,
    x: str = "",
    y: str = "",
    log: str = "",
) -> Figure:
    """Named curves (xs, ys) on one pair of axes; `log` names the axes that are logarithmic, as in "xy"."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys) in curves.items():
        axes.plot(xs, ys, label=name, marker="o" if len(xs) < 20 else "")
    axes.set(xlabel=x, ylabel=y, **_scales(log))
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    return saved(figure, path)


def plot_panels(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    path: Path | None = None,
    *,
    x: str = "",
    log: str = "",
) -> Figure:
    """Named panels of named curves (xs, ys) along the same x, two beside one another; `log` as in `plot_curves`."""
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 3 * rows), dpi=100, layout="constrained")
    for i, (y, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, 2, i + 1)
        for name, (xs, ys) in curves.items():
            axes.plot(xs, ys, label=name, marker="o" if len(xs) < 20 else "")
        axes.set(xlabel=x, ylabel=y, **_scales(log))
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    return saved(figure, path)


def plot_front(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    path: Path | None = None,
    *,
    front: tuple[Sequence[float], Sequence[float]] = ((), ()),
    floor: Mapping[str, float] | None = None,
    x: str = "",
    y: str = "",
    log: str = "",
) -> Figure:
    """Named curves (xs, ys, errors) of cost against quality, with the Pareto front and named floors as dashed lines.

    The ticks of x are its values. An error that is 0 or nan is not drawn. `log` is as in `plot_curves`.
    """
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys, errors) in curves.items():
        bars = [error if error > 0 else 0.0 for error in errors]
        axes.errorbar(xs, ys, bars, label=name, marker="o", markersize=4, capsize=2)
    if len(front[0]) > 1:
        axes.plot(*front, color="black", linewidth=4, alpha=0.2, label="Pareto front", zorder=0)
    for name, value in (floor or {}).items():
        axes.axhline(value, color="black", linestyle="--", linewidth=1, label=name)
    axes.set(xlabel=x, ylabel=y, **_scales(log))
    ticks = sorted({value for xs, _, _ in curves.values() for value in xs})
    if len(ticks) <= TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return saved(figure, path)


def _scales(log: str) -> dict[str, str]:
    return {f"{axis}scale": "log" if axis in log else "linear" for axis in "xy"}


def plot_histogram(
    values: Tensor, path: Path | None = None, *, x: str = "", mark: Mapping[str, float] | None = None
) -> Figure:
    """A histogram of values (N,), with a named line at one value, if it is given."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    count_values(axes, values.detach().double().cpu())
    axes.set(xlabel=x, ylabel="count")
    for name, value in (mark or {}).items():
        axes.axvline(value, color="black", linestyle="--", label=f"{name} {value:.4g}")
        axes.legend()
    return saved(figure, path)


def plot_histograms(
    panels: Mapping[str, Mapping[str, Tensor]], path: Path | None = None, *, title: str = "", bins: int = 40
) -> Figure:
    """Named panels of histograms of named batches of values (N,), two beside one another.

    The batches of a panel share their bins, and each has an area of 1. The axis runs over the 0.5% to 99.5% points of
    all batches. Values beyond are counted in its first and last bin.
    """
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 3 * rows), dpi=100, layout="constrained")
    figure.suptitle(title)
    for i, (x, batches) in enumerate(panels.items()):
        values = {name: batch.detach().double().cpu() for name, batch in batches.items()}
        ends = torch.stack([batch.quantile(torch.tensor([0.005, 0.995]).double()) for batch in values.values()])
        low, high = float(ends.min()), float(ends.max())
        edges = torch.linspace(low, high if high > low else low + 1, bins + 1).double()
        axes = figure.add_subplot(rows, 2, i + 1)
        for name, batch in values.items():
            inside = batch.clamp(float(edges[0]), float(edges[-1]))
            axes.hist(inside.numpy(), bins=edges.tolist(), density=True, histtype="step", linewidth=1.5, label=name)
        axes.set(xlabel=x, yticks=[])
        axes.legend(fontsize=8)
    return saved(figure, path)
