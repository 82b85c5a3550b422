"""An earlier report to compare with: refused where the recipes differ, which is what makes two numbers comparable."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorefield.commands.evaluate.report import text_of

SHORT = 60  # characters of a value in a message


def read_baseline(path: Path) -> dict[str, Any]:
    """A report of --mode=evaluate.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it does not read.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"expected a report of --mode=evaluate in {path}, which is not there: give its .json")
    try:
        report = json.loads(path.read_text())
        _ = report["recipe"], [row["name"] for row in report["rows"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"expected a report of --mode=evaluate in {path}, got another file: give its .json") from None
    return dict(report)


def check_comparable(recipe: Mapping[str, Any], baseline: Mapping[str, Any], path: str) -> None:
    """Raises ValueError, with what differs, unless two reports have one recipe."""
    theirs = baseline["recipe"]
    odd = [key for key in recipe if recipe[key] != theirs.get(key)]
    if odd:
        said = "; ".join(f"{key} {_short(theirs.get(key))} there, {_short(recipe[key])} here" for key in odd[:3])
        raise ValueError(
            f"expected --baseline={path} by the same recipe, got another ({said}): numbers of two recipes say nothing "
            "about samples, so evaluate both by one"
        )


def compared(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[str]:
    """A line for each metric of each row that both reports have: before, now, and the difference in its errors.

    A single row is compared with a single row, whatever their names are.
    """
    before = {row["name"]: row for row in baseline["rows"] if "numbers" in row}
    alone = len(rows) == len(baseline["rows"]) == 1
    lines = []
    for row in rows:
        old = next(iter(before.values()), None) if alone else before.get(row["name"])
        if old is None or "numbers" not in row:
            continue
        for name, number in row["numbers"].items():
            if name in old["numbers"]:
                lines.append(f"{row['name']}, {name}: {_change(old['numbers'][name], number)}")
    return lines


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    said = f"{text_of(old)} before, {text_of(new)} now"
    errors = [number.get("standard_error") or 0.0 for number in (old, new)]
    both = math.hypot(*errors)
    if old["value"] is None or new["value"] is None or not all(errors):
        return said
    return f"{said}, a difference of {(new['value'] - old['value']) / both:+.1f} standard errors"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."
