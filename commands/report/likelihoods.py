"""Bits/dim with its parts, by estimator and split."""

import itertools
import math
from typing import Any

from scorefield.commands.report.about import weights_of
from scorefield.commands.report.blocks import Block, Missing, Number, Section, Table, picture, said, side_by_side
from scorefield.commands.report.command_of import command_line
from scorefield.commands.report.found import Found, Report
from scorefield.commands.report.numbers import is_number, number

UNITS = {"bits_per_dim": "bits/dim", "nats_per_dim": "nats/dim"}
HEART = "A gap well above its error would say that training images were learned by heart."
# The part that reports leave out, of integers and of continuous values.
DEQUANTISATION = (
    "dequantisation",
    "With uniform noise it is a constant, the log of the levels in a unit of the model's values",
)
UNIT = "change of units", "It is a constant, the log of a unit of the model's values in those of the data"
ROUNDING = 1e-5  # of sums in float32
GAPS = 4  # between splits, at most
Row = tuple[Number | str | None, ...]


def likelihood_section(found: Found) -> Section:
    """A table of estimates with their errors, one of their parts, and histograms."""
    reports = found.of_mode("likelihood", "estimates")
    name = next((UNITS[unit] for report in reports for unit in UNITS if unit in report.content), "bits/dim")
    title = f"{name[0].upper()}{name[1:]}"
    if not reports:
        command = command_line("likelihood", found.workdir)
        return Section("likelihood", title, [Missing("The likelihood has not been measured yet.", command)])
    reports = sorted(reports, key=lambda each: (bool(each.mark), each.content.get("split") != "test"))
    values, parts = list[Row](), dict[tuple[str, str], dict[str, Any]]()
    meanings = dict[str, str]()
    for report in reports:
        unit = next((unit for unit in UNITS if unit in report.content), "bits_per_dim")
        for estimator, each in report.content["estimates"].items():
            meanings[estimator] = str(each.get("kind", ""))
            of = (str(report.content.get("split")), estimator)
            about = ", ".join(filter(None, (weights_of(report), _other_data(found, report))))
            values.append((
                *of, number(each.get(unit), each.get("standard_error")), number(each.get("error_of_a_value"), digits=2),
                number(each.get("n")), number(each.get("nfe")), report.path.name, about,
            ))  # fmt: skip
            if each.get("parts"):
                parts[of] = each
    head = ("split", "estimator", f"{name} ± error", "error of an image", "images", "evaluations", "file", "of")
    blocks: list[Block] = [
        Table(head, values, "The error is the standard error over images. Evaluations are of the network for an image.")
    ]
    if parts:
        blocks.append(_parts(parts, name, found.run.data.levels))
    own = [report for report in reports if not report.mark and not _other_data(found, report)]
    blocks += [said(*each) for each in _gaps(own)[:GAPS]]
    blocks += [said(f"{estimator}: {text}.", quiet=True) for estimator, text in meanings.items() if text]
    levels = found.run.data.levels
    if levels is not None:
        blocks.append(said("Lower is better. A uniform guess has ", number(math.log2(levels)), f" {name}.", quiet=True))
    pictures = (
        picture(
            each.picture,
            f"histogram of {name}",
            f"{each.picture.name}: {name} of images of the {each.content.get('split')} split, {weights_of(each)}.",
        )
        for each in reports[:2]
    )
    blocks += side_by_side(*pictures)
    return Section("likelihood", title, blocks)


def _parts(estimates: dict[tuple[str, str], dict[str, Any]], name: str, levels: int | None) -> Table:
    """A row of parts for each estimate, by its split and estimator."""
    unit = next(unit for unit, text in UNITS.items() if text == name)
    rest, meaning = UNIT if levels is None else DEQUANTISATION
    every = {of: {**each["parts"], **_left_out(each, unit, rest)} for of, each in estimates.items()}
    columns = list(dict.fromkeys(part for parts in every.values() for part in parts))
    rows = []
    for of, parts in every.items():
        errors = estimates[of].get("parts_standard_error") or {}
        total = number(estimates[of].get(unit))
        rows.append((*of, *(number(parts.get(part), errors.get(part)) for part in columns), total))
    caption = f"The parts of the estimates, in {name}. Those of a bound add up to the total."
    if rest in columns:
        caption += f" The {rest} is the total less the other parts. {meaning}."
    return Table(("split", "estimator", *columns, "total"), rows, caption)


def _left_out(estimate: dict[str, Any], unit: str, name: str) -> dict[str, float]:
    """What the parts of a bound lack of its total; {} for a flow, whose report has a part alone."""
    parts: dict[str, Any] = estimate["parts"]
    total: Any = estimate.get(unit)
    if "diffusion" not in parts or not all(map(is_number, (total, *parts.values()))):
        return {}
    rest = total - sum(parts.values())
    return {name: rest} if abs(rest) > ROUNDING * max(map(abs, (total, *parts.values()))) else {}


def _gaps(own: list[Report]) -> list[tuple[Any, ...]]:
    """Words on how much better the training images are, for each pair of reports and each of their estimators."""
    gaps = list[tuple[Any, ...]]()
    for test, train in itertools.product(own, own):
        first, second = test.content, train.content
        if (first.get("split"), second.get("split")) != ("test", "train"):
            continue
        for estimator in first["estimates"].keys() & second["estimates"].keys():
            each, other = first["estimates"][estimator], second["estimates"][estimator]
            unit = next((unit for unit in UNITS if unit in each and unit in other), None)
            if unit is None or first.get("weights") != second.get("weights"):
                continue
            errors = [one.get("standard_error") or math.nan for one in (each, other)]
            gap = number(each[unit] - other[unit], math.hypot(*errors))
            name = f"Test less train, by {estimator}: "
            gaps.append((name, gap, f" {UNITS[unit]}. {HEART}"))
    return gaps


def _other_data(found: Found, report: Report) -> str:
    name = report.content.get("data")
    return "" if name in (None, *found.data_names) else f"on {name}"
