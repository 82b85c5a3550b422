"""An earlier report to compare with: refused where the recipes differ, which is what makes two numbers comparable."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorefield.commands.evaluate.report import best_of, text_of

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
        said = "; ".join(f"{key} {_differing(theirs.get(key), recipe[key])}" for key in odd[:3])
        raise ValueError(
            f"expected --baseline={path} by the same recipe, got another ({said}): numbers of two recipes say nothing "
            "about samples, so evaluate both by one"
        )


def compared(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[str]:
    """A line for each metric of each row: before, now, and the difference in its errors.

    A row is compared with the row of the same name, or else with the best one of the baseline, which the line names.
    """
    before = {row["name"]: row for row in baseline["rows"] if "numbers" in row}
    best = best_of(list(before.values()))
    lines = []
    for row in rows:
        old = before.get(row["name"], best)
        if old is None or "numbers" not in row:
            continue
        names = row["name"] if old["name"] == row["name"] else f"{row['name']} after {old['name']}"
        for name, number in row["numbers"].items():
            if name in old["numbers"]:
                lines.append(f"{names}, {name}: {_change(old['numbers'][name], number)}")
    return lines


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    said = f"{text_of(old)} before, {text_of(new)} now"
    errors = [number.get("standard_error") or 0.0 for number in (old, new)]
    both = math.hypot(*errors)
    if old["value"] is None or new["value"] is None or not all(errors):
        return said
    return f"{said}, a difference of {(new['value'] - old['value']) / both:+.1f} standard errors"


def _differing(there: object, here: object) -> str:
    """Both values, from a little before the place where they differ."""
    texts = [str(there), str(here)]
    same = next((i for i, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    start = max(0, same - SHORT // 4) if max(map(len, texts)) > SHORT else 0
    first, second = (("..." if start else "") + text[start : start + SHORT] for text in texts)
    return f"{first} there, {second} here"
