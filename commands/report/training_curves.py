"""Loss by noise level, loss and gradients, the bound's parts and the speed over training."""

import itertools
from collections.abc import Sequence
from typing import Any

from scorefield.commands.progress_bar import duration
from scorefield.commands.report.blocks import Block, Charts, Missing, Section, said
from scorefield.commands.report.chart import Chart, Curve, chart
from scorefield.commands.report.found import Found
from scorefield.commands.report.numbers import is_number, number
from scorefield.commands.train.pictures import curves_by_level

UNITS = {"bits_per_dim": "bits/dim", "nats_per_dim": "nats/dim"}
SEEN = "images seen"


def training_section(found: Found) -> Section:
    """Charts from metrics.jsonl and timing.jsonl."""
    rows = [row for row in found.rows if is_number(row.get("loss"))]
    if not rows:
        why = "The weights were imported, so there are no" if found.imported else "There are no"
        return Section("training", "Training", [Missing(f"{why} metrics of training in this directory.")])
    charts = [*_by_level(rows), _loss(rows), _gradients(rows), *_bound(rows), _speed(found.timing)]
    blocks: list[Block] = [Charts(tuple(each for each in charts if each is not None))]
    return Section("training", "Training", [*blocks, *_time(found)])


def _by_level(rows: list[dict[str, Any]]) -> list[Chart | None]:
    stages = curves_by_level(rows)
    errors = chart(
        "Error in the noise by log-SNR, for each quarter of training", _named(stages), x="log-SNR",
        y="|eps_hat - eps|^2 / D", log="y",
        caption="Error in the noise by noise level, a curve for each quarter of training. Noise is at the left, data "
        "at the right.",
    )  # fmt: skip
    charts = [errors]
    for unit, name in UNITS.items():
        parts = curves_by_level(rows, unit)
        if parts:
            shares = _shares(rows, unit)
            charts.append(
                chart(
                    f"Part of each noise level in the bound, {name}", shares, x="log-SNR", y=f"{name} of a bin",
                    caption="What each noise level adds to the bound, in the first and the last quarter of training.",
                )
            )  # fmt: skip
    return charts


def _shares(rows: list[dict[str, Any]], unit: str) -> list[Curve]:
    """The bound's share of each bin, over the first and the last quarter."""
    counted = [row for row in rows if unit in row.get("levels", {})]
    quarter, curves = max(1, len(counted) // 4), []
    for i, (name, part) in enumerate({"first quarter": counted[:quarter], "last quarter": counted[-quarter:]}.items()):
        edges = part[-1]["levels"]["edges"]
        part = [row for row in part if row["levels"]["edges"] == edges]
        means = [sum(row["levels"][unit][k] for row in part) / len(part) for k in range(len(edges) - 1)]
        centres = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        curves.append(Curve(name, centres, means, dots=True, colour=3 * i))
    return curves


def _loss(rows: list[dict[str, Any]]) -> Chart | None:
    curve = Curve("loss", _column(rows, "images"), _column(rows, "loss"))
    return chart(
        "Loss over training", [curve], x=SEEN, y="loss", log="y", caption="Loss, each point the mean of some steps."
    )


def _gradients(rows: list[dict[str, Any]]) -> Chart | None:
    kept = [row for row in rows if is_number(row.get("grad_norm"))]
    curves = [
        Curve(name, _column(kept, "images"), _column(kept, key), colour=i)
        for i, (key, name) in enumerate({"grad_norm": "mean", "grad_norm_max": "largest"}.items())
        if all(is_number(row.get(key)) for row in kept)
    ]
    return chart(
        "Norm of the gradient over training", curves, x=SEEN, y="norm of the gradient", log="y",
        caption="Norm of the gradient before it is clipped.",
    )  # fmt: skip


def _bound(rows: list[dict[str, Any]]) -> list[Chart | None]:
    charts = list[Chart | None]()
    for unit, name in UNITS.items():
        kept = [row for row in rows if isinstance(row.get(unit), dict)]
        if kept:
            curves = [
                Curve(part, _column(kept, "images"), [row[unit][part]["mean"] for row in kept], colour=i)
                for i, part in enumerate(kept[-1][unit])
                if all(part in row[unit] for row in kept)
            ]
            caption = "The bound and its parts in training, by the raw weights."
            charts.append(chart(f"{name} over training", curves, x=SEEN, y=name, log="y", caption=caption))
    return charts


def _speed(timing: Sequence[dict[str, Any]]) -> Chart | None:
    kept = [row for row in timing if is_number(row.get("images_per_second"))]
    curve = Curve("images a second", _column(kept, "images"), _column(kept, "images_per_second"))
    return chart("Images a second", [curve], x=SEEN, y="images a second", caption="Speed of training.")


def _time(found: Found) -> list[Block]:
    seconds = sum(row["seconds"] for row in found.timing if is_number(row.get("seconds")))
    if not seconds or not found.timing:
        return []
    images = number(found.timing[-1]["images"] / seconds, digits=3)
    memory = [row["memory_mib"] for row in found.timing if is_number(row.get("memory_mib"))]
    used = ["; the most memory was ", number(max(memory), digits=3), " MiB"] if memory else []
    return [said(f"Training took {duration(seconds)}, ", images, " images a second", *used, ".")]


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float(row[key]) for row in rows]


def _named(curves: dict[str, tuple[list[float], list[float]]]) -> list[Curve]:
    return [Curve(name, xs, ys, dots=True, colour=i) for i, (name, (xs, ys)) in enumerate(curves.items())]
