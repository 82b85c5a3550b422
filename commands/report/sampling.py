"""Samples, and solvers by steps."""

from typing import Any

from scorefield.commands.report.about import weights_of
from scorefield.commands.report.blocks import (
    Block,
    Charts,
    Missing,
    Picture,
    Section,
    Table,
    picture,
    said,
    side_by_side,
)
from scorefield.commands.report.chart import Curve, chart
from scorefield.commands.report.command_of import command_line
from scorefield.commands.report.found import Found, Report
from scorefield.commands.report.numbers import is_number, number
from scorefield.commands.report.specs import short_spec
from scorefield.configs import build
from scorefield.evaluation.pareto import pareto_front

OTHERS = 4  # pictures of samples beside the pair


def samples_section(found: Found) -> Section:
    """Samples of the averaged weights beside those of the raw ones, from the same noise, and trajectories."""
    reports = found.of_mode("sample")
    pair = pair_of(reports)
    others = [report for report in reports if report not in pair][: OTHERS - len(pair)]
    blocks = side_by_side(*(_shown(found, each) for each in pair))
    if pair:
        blocks.append(said("Both are of the same noise and settings.", quiet=True))
    alone = [block for each in others for block in side_by_side(_shown(found, each))]
    if len(alone) > 1 or (pair and alone):
        alone.insert(0, said("These are not of the same noise and settings, so that they do not compare weights."))
    if not (blocks := [*blocks, *alone]):
        blocks.append(Missing("There are no samples yet.", command_line("sample", found.workdir)))
    return Section("samples", "Samples", blocks)


def solvers_section(found: Found) -> Section:
    """Tables of solvers by steps, with the distance from the flow against the evaluations."""
    blocks: list[Block] = []
    reports = sorted(
        found.of_mode("compare", "table", "solver"), key=lambda report: (bool(report.mark), -_finished(report))
    )
    for report in reports[:2]:
        blocks += _compared(report)
    if others := [report.path.name for report in reports[2:]]:
        blocks.append(said(f"Comparisons with fewer rows are left out: {', '.join(others)}.", quiet=True))
    if not blocks and not found.run.sde.needs_code:
        command = command_line("compare", found.workdir)
        blocks.append(Missing("Solvers have not been compared yet.", command))
    return Section("solvers", "Solvers by steps", blocks)


def pareto(rows: list[dict[str, Any]], cost: str = "nfe", error: str = "distance") -> list[int]:
    """The rows that no other row beats in both numbers, by rising cost."""
    kept = [i for i, row in enumerate(rows) if is_number(row.get(cost)) and is_number(row.get(error))]
    return [kept[i] for i in pareto_front([rows[i][cost] for i in kept], [rows[i][error] for i in kept])]


def _finished(report: Report) -> int:
    """Rows that did not fail."""
    return sum(isinstance(row, dict) and "nfe" in row for row in report.content["table"])


def _compared(report: Report) -> list[Block]:
    rows = [row for row in report.content["table"] if isinstance(row, dict)]
    front = pareto(rows)
    shown = [
        (
            str(row.get("solver")),
            number(row.get("steps")),
            number(row.get("nfe")),
            number(row.get("seconds"), digits=3),
            number(row.get("distance"), digits=3),
            "Pareto front" if i in front else _remark(row),
        )
        for i, row in enumerate(rows)
    ]
    num = report.content.get("num")
    caption = (
        f"{report.path.name}: {num} samples from the same noise, {weights_of(report)}. Evaluations are of the network "
        "for one sample, seconds for all. The distance is the root mean square from the solution of the probability "
        "flow, in the model's values. No other row is both cheaper and nearer than one of the Pareto front."
    )
    head = ("solver", "steps", "evaluations", "seconds", "distance from the flow", "")
    table = Table(head, shown, caption, marked=frozenset(front))
    curves = []
    names = list(dict.fromkeys(str(row.get("solver")) for row in rows))
    for i, name in enumerate(names):
        own = [row for row in rows if row.get("solver") == name and is_number(row.get("distance"))]
        own.sort(key=lambda row: row["nfe"])
        labels = [f"{name}, {row['steps']} steps: {row['distance']:.3g}" for row in own]
        curves.append(
            Curve(name, [row["nfe"] for row in own], [row["distance"] for row in own], True, True, i % 8, labels)
        )
    best = Curve("Pareto front", [rows[i]["nfe"] for i in front], [rows[i]["distance"] for i in front], colour=None)
    picture_of = chart(
        "Distance from the flow against evaluations of the network", [*curves, best], x="evaluations of one sample",
        y="distance from the flow", log="xy", caption="Distance from the flow against evaluations. The dashed line is "
        "the Pareto front.",
    )  # fmt: skip
    rows_of_samples = picture(report.picture, "samples of each solver from the same noise", f"{report.picture.name}.")
    charts: list[Block] = [] if picture_of is None else [Charts((picture_of,))]
    return [*charts, table, *side_by_side(rows_of_samples)]


def _remark(row: dict[str, Any]) -> str | None:
    if "failed" in row:
        return str(row["failed"])
    return None if "distance" in row else "stochastic"


def pair_of(reports: list[Report]) -> list[Report]:
    """Samples of the averaged and of the raw weights from the same noise and settings; none without both."""
    for first in reports:
        for second in reports:
            weights = first.content.get("weights"), second.content.get("weights")
            if weights == ("ema", "raw") and _alike(first) == _alike(second):
                return [first, second]
    return []


def _alike(report: Report) -> dict[str, Any]:
    odd = ("weights", "checkpoint_sha256", "seconds", "nfe")
    return {key: value for key, value in report.content.items() if key not in odd}


def _shown(found: Found, report: Report) -> Picture | None:
    return picture(report.picture, _alt(found, report), _caption(report))


def _alt(found: Found, report: Report) -> str:
    return f"samples of {found.run.data.name}, {weights_of(report)}"


def _caption(report: Report) -> str:
    content = report.content
    guided = content.get("guidance")
    nfe = number(content.get("nfe"))
    parts = [
        f"{content.get('num')} samples, {weights_of(report)}",
        f"{short_spec(build.SOLVERS, str(content.get('solver')))}, {content.get('steps')} steps",
        *([] if nfe is None else [f"{nfe.text} evaluations"]),
    ]
    parts += [f"guidance {guided:g}"] if is_number(guided) and guided != 1 else []
    parts += [f"label {content['label']}"] if content.get("label") is not None else []
    return f"{report.picture.name}: {'; '.join(parts)}."
