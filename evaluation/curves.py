"""Curves and histograms as matplotlib figures, saved where a path is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from scorefield.evaluation.pictures import count_values, saved


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
