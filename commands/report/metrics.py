"""What --mode=evaluate measured: metrics with their errors and floors, their recipes, and copies of training data."""

from collections.abc import Sequence
from typing import Any

from scorefield.commands.evaluate.report import pareto_of, warnings_of
from scorefield.commands.report.about import evaluations_of_run
from scorefield.commands.report.blocks import (
    Block,
    Charts,
    Heading,
    Missing,
    Number,
    Section,
    Table,
    picture,
    said,
    side_by_side,
)
from scorefield.commands.report.chart import Chart, Curve, chart
from scorefield.commands.report.command_of import command_line
from scorefield.commands.report.found import WEIGHTS, Found, Report
from scorefield.commands.report.numbers import is_number, number, plain

SHOWN = 8  # reports
Row = tuple[Number | str | None, ...]


def metrics_section(found: Found) -> Section:
    """Tables of metrics, each number with its error, above the floor of held-out data, and the recipe."""
    every = found.of_mode("evaluate", "rows", "floor", "recipe")
    own = evaluations_of_run(found)
    ordered = [*(each for each in own if each in every), *(each for each in every if each not in own)]
    reports = ordered[:SHOWN]
    blocks: list[Block] = [block for report in reports for block in _evaluated(report)]
    if left := ", ".join(each.path.name for each in ordered[SHOWN:]):
        blocks.append(said(f"Reports that are not shown here: {left}.", quiet=True))
    meanings = {name: text for report in reports for name, text in report.content.get("meanings", {}).items()}
    if meanings:
        blocks.append(said("; ".join(f"{name}: {text}" for name, text in meanings.items()), ".", quiet=True))
    if not blocks and found.checkpoint is not None:
        blocks.append(Missing("No metric has been measured yet.", command_line("evaluate", found.workdir)))
    return Section("metrics", "Metrics", blocks)


def _evaluated(report: Report) -> list[Block]:
    content = report.content
    every = [row for row in content["rows"] if isinstance(row, dict)]
    rows = [row for row in every if row.get("numbers")]
    if not rows:
        return [Missing(f"{report.path.name} has no row with numbers.")]
    names = list(dict.fromkeys(name for row in rows for name in row["numbers"]))
    best = next((row for row in rows if row.get("name") == content.get("best")), rows[0])
    drawn = _against_evaluations(rows, names[0], content["floor"])
    blocks: list[Block] = [Heading(_heading(report, names))]
    blocks += [] if drawn is None else [Charts((drawn,))]
    blocks += [_table(report, every, names), said(f"{report.path.name}: {best['recipe']}.")]
    about = warnings_of(best["numbers"], best.get("dimensions", 0), content["recipe"].get("reference", {}))
    blocks += [said(f"{line}.", quiet=True) for line in about]
    if classes := best.get("per_class"):
        of_classes = [
            (name, number(each["value"], each.get("standard_error")), number(each["n"]), number(each["m"]))
            for name, each in classes.items()
        ]
        caption = f"KID of each class, {best['name']}."
        blocks.append(Table(("class", "kid", "samples", "reference"), of_classes, caption))
    blocks += [*_bits(rows), *_copies(report)]
    beside = [report.picture] if len(rows) == 1 else []  # of several rows it is the chart
    beside += sorted(report.path.parent.glob(f"{report.path.stem}_neighbours.png"))
    pictures = (picture(file, _shows(file.stem), f"{file.name}: {_shows(file.stem)}.") for file in beside)
    return [*blocks, *side_by_side(*pictures)]


def _heading(report: Report, names: Sequence[str]) -> str:
    """What tells a report from the others: its file, its metrics, and their features."""
    return f"{report.path.name}: {', '.join(names)} in the features {report.content['recipe'].get('features')}"


def _shows(stem: str) -> str:
    """What a picture beside a report shows."""
    if stem.endswith("_neighbours"):
        return "samples that look most like a copy of one training item, above these items"
    return "samples beside images of the reference"


def _table(report: Report, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """The rows with their numbers, and the floor below them."""
    content = report.content
    floor = content["floor"]
    shown = list[Row]()
    for row in rows:
        numbers = row.get("numbers", {})
        cells = [_number(numbers.get(name)) for name in names]
        remark = row.get("failed") or ("Pareto front" if row.get("name") in content.get("pareto", ()) else None)
        shown.append((str(row.get("name")), number(row.get("n")), number(row.get("nfe")),
                      number(row.get("seconds"), digits=3), *cells, remark))  # fmt: skip
    shown += _of_floor_size(rows, names, content)
    if floor:
        sizes = {each.get("n") for each in floor.values()}
        n = number(sizes.pop()) if len(sizes) == 1 else None
        held_out = [_number(floor.get(name)) for name in names]
        shown.append(("floor: held-out data", n, None, None, *held_out, None))
    head = ("samples", "n", "evaluations", "seconds", *names, "")
    best = frozenset(i for i, row in enumerate(rows) if row.get("name") == content.get("best"))
    mark = f" It is {report.mark}." if report.mark else ""
    caption = (
        f"{report.path.name}.{mark} Evaluations are of the network for one sample, seconds for all. Numbers stand with "
        "their standard errors where these are known. The floor is what data of the other split gives in the place of "
        "samples. The row with the best first metric is set off."
    )
    return Table(head, shown, caption, marked=best)


def _of_floor_size(rows: Sequence[dict[str, Any]], names: Sequence[str], content: dict[str, Any]) -> list[Row]:
    """The best samples' metrics at the floor's number of samples, where they depend on that number."""
    best = next((row for row in rows if row.get("name") == content.get("best")), {})
    numbers = best.get("numbers_at_floor_size") or {}
    if not numbers:
        return []
    cells = [_number(numbers.get(name)) for name in names]
    n = number(next(iter(numbers.values())).get("n"))
    return [(f"{best['name']}, as many as the floor", n, None, None, *cells, None)]


def _number(each: Any) -> Number | None:
    return number(each.get("value"), each.get("standard_error")) if isinstance(each, dict) else None


def _text(each: Any) -> str:
    shown = _number(each)
    return "" if shown is None else shown.text


def _against_evaluations(rows: Sequence[dict[str, Any]], metric: str, floor: dict[str, Any]) -> Chart | None:
    """The first metric against evaluations or images seen, with the front and the floor; None where neither differs."""
    known = [row for row in rows if is_number(row["numbers"].get(metric, {}).get("value"))]
    differ = (key for key in ("nfe", "images") if len({row[key] for row in known if is_number(row.get(key))}) > 1)
    if (along := next(differ, None)) is None:
        return None
    kept = [row for row in known if is_number(row.get(along))]
    solvers = len({row.get("solver") for row in kept}) > 1
    named = dict[str, list[dict[str, Any]]]()
    for row in kept:
        name = str(row["name"]).removesuffix(f" {row.get('steps')} steps")
        of = f"{row.get('weights')} {row.get('solver')}" if solvers else str(row.get("weights"))
        named.setdefault(name if along == "nfe" else of, []).append(row)
    drawn = []
    for i, (name, own) in enumerate(named.items()):
        values = [row["numbers"][metric]["value"] for row in own]
        labels = [f"{row['name']}: {_text(row['numbers'][metric])}" for row in own]
        drawn.append(Curve(name, [row[along] for row in own], values, True, True, i % 8, labels))
    front = pareto_of(kept, metric) if along == "nfe" else []
    if len(front) > 1:
        values = [row["numbers"][metric]["value"] for row in front]
        drawn.append(Curve("Pareto front", [row["nfe"] for row in front], values, colour=None))
    level = floor.get(metric, {}).get("value")
    if is_number(level):
        drawn.append(Curve("floor: held-out data", [kept[0][along]], [level], colour=7, across=True))
    positive = all(value > 0 for curve in drawn for value in curve.ys)
    x = "evaluations of one sample" if along == "nfe" else "images seen"
    return chart(
        f"{metric} against {x}", drawn, x=x, y=metric, log=("x" if along == "nfe" else "") + ("y" if positive else ""),
        caption=f"{metric} against {x}, with the floor of held-out data.",
    )  # fmt: skip


def _bits(rows: Sequence[dict[str, Any]]) -> list[Block]:
    """Bits/dim of each weights, which no sampler changes."""
    found = dict[tuple[str, str], dict[str, Any]]()
    for row in rows:
        if "bits_per_dim" in row:
            found[str(row.get("checkpoint")), str(WEIGHTS.get(str(row.get("weights"))))] = row["bits_per_dim"]
    if not found:
        return []
    unit = next(each["unit"] for bits in found.values() for each in bits.values())
    shown = [(*of, *(_number(bits.get(split)) for split in ("test", "train"))) for of, bits in found.items()]
    caption = f"{unit} by the run's own bound, beside these metrics."
    return [Table(("checkpoint", "weights", f"{unit}, test", f"{unit}, train"), shown, caption)]


def _copies(report: Report) -> list[Block]:
    """What was found of copies of training data."""
    copies = report.content.get("copies")
    if not isinstance(copies, dict):
        return []
    shares = [number(copies.get(key)) for key in ("share", "share_of_held_out")]
    authentic = [number(copies.get(key)) for key in ("authentic", "authentic_held_out")]
    rows: list[Row] = [
        ("share that looks like a copy of one training item", *shares),
        ("share whose nearest training item is nearer to other training items", *authentic),
    ]
    counts = f"{plain(copies.get('training', 0))} training items, {plain(copies.get('held_out', 0))} held-out ones"
    caption = (
        f"Search for copies, {report.path.name}: {counts}. Distances are of the values themselves, as they are stored."
    )
    test = said(
        "Test of whether samples are nearer to training data than held-out data are: p = ", number(copies.get("p")),
        " (small if they are), z = ", number(copies.get("z"), digits=3), " (below 0 if they are).",
    )  # fmt: skip
    return [Table(("", "samples", "held-out data"), rows, caption), test]
