"""The report of an evaluation: its recipe in a line, the table, and pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scorefield.commands.evaluate.numbers import HIGHER_IS_BETTER, Numbers
from scorefield.evaluation import plot_front, plot_samples
from scorefield.evaluation.pareto import pareto_front

DIGITS = 4
SMALL_FID, SMALL_CURVE = 2048, 10_000  # samples below which a Frechet distance says little


def recipe_of(features: str, reference: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The line to paste beside a number: features, both sizes, the sampler, the weights."""
    against = reference.get("data", reference.get("file", ""))
    split = f" {reference['split']}" if "split" in reference else ""
    count = reference.get("count")
    said = "" if reference.get("features_named", True) else " (which does not name its features)"
    sides = f"{row['n']} samples against {'unknown many' if count is None else count} of {against}{split}{said}"
    if "solver" not in row:
        return f"{features}; {sides}"
    last = ", last denoising" if row["denoise"] else ""
    guided = f", guidance {row['guidance']:g}" if row.get("guidance", 1.0) != 1.0 else ""
    sampler = f"{row['solver']}, {row['steps']} steps of {row['grid']}{last}{guided}, seed {row['seed']}"
    return f"{features}; {sides}; {sampler}; {row['weights']} weights of checkpoint {row['checkpoint']}"


def text_of(number: Mapping[str, Any]) -> str:
    """A number with its error, to the digits that the error leaves."""
    value, error = number["value"], number.get("standard_error")
    if value is None:
        return "nan"
    if not error or not math.isfinite(error):
        return f"{value:.{DIGITS}g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} +- {error:.{places}f}" if places < 7 else f"{value:.3g} +- {error:.1g}"


def name_of_row(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What tells a row from the others."""
    words = [str(row[key]) for key in ("checkpoint", "weights") if _differs(key, rows)]
    if "solver" in row:
        name = row["solver"].partition(":")[0]
        alone = len({other["solver"] for other in rows if other["solver"].partition(":")[0] == name}) == 1
        words += ["tuned" if "tuned" in row else name if alone else row["solver"], f"{row['steps']} steps"]
    return " ".join(words) or "samples"


def line_of(row: Mapping[str, Any]) -> str:
    """One row of the table, for the screen."""
    if "failed" in row:
        return f"{row['name']:30} {row['failed']}"
    numbers = "  ".join(f"{name} {text_of(number)}" for name, number in row["numbers"].items())
    nfe = f" {row['nfe']:5g} evaluations" if row.get("nfe") is not None else ""
    return f"{row['name']:30}{nfe}  {numbers}"


def warnings_of(numbers: Numbers, dims: int, reference: Mapping[str, Any]) -> list[str]:
    """What a reader of these numbers must know."""
    lines = []
    fid = numbers.get("fid")
    if fid is not None:
        least = min(fid["n"], fid["m"] or fid["n"])
        if least <= dims:
            lines.append(
                f"FID of {fid['n']} samples against {fid['m']} in {dims} dimensions: covariances without full rank, "
                "so it is mostly bias. Compare it with numbers of the same sizes alone, or use KID"
            )
        elif least < SMALL_FID:
            lines.append(f"FID of {least} samples is biased by about K / n: compare numbers of the same sizes alone")
    return lines


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the best first metric."""
    known = [row for row in rows if row.get("numbers")]
    if not known:
        return None
    metric = next(iter(known[0]["numbers"]))
    return min(known, key=lambda row: _loss(row, metric))


def pareto_of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """The rows than which none is both cheaper and better, by network evaluations."""
    known = [row for row in rows if row.get("nfe") is not None and metric in row.get("numbers", {})]
    return [known[i] for i in pareto_front([row["nfe"] for row in known], [_loss(row, metric) for row in known])]


def plot_sweep(rows: Sequence[Mapping[str, Any]], floor: Numbers, path: Path) -> Path:
    """The first metric against network evaluations, or against the images seen, with the floor and the Pareto front."""
    metric = next(iter(next(row for row in rows if "numbers" in row)["numbers"]))
    along = "images" if _differs("images", rows) and not _differs("nfe", rows) else "nfe"
    keys = [key for key in ("weights", "solver") if _differs(key, rows)]
    curves: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for row in rows:
        if row.get(along) is None or metric not in row.get("numbers", {}):
            continue
        name = " ".join(str(row[key]) for key in keys) or metric
        if along == "nfe":
            name = row["name"].removesuffix(f" {row['steps']} steps")
        xs, ys, errors = curves.setdefault(name, ([], [], []))
        xs.append(row[along])
        ys.append(_value(row, metric))
        errors.append(row["numbers"][metric].get("standard_error") or 0.0)
    level = floor.get(metric, {}).get("value")
    known = {} if level is None else {f"floor: held-out data, n = {floor[metric]['n']}": float(level)}
    positive = all(y > 0 for _, ys, _ in curves.values() for y in [*ys, *known.values()])
    front = pareto_of(rows, metric) if along == "nfe" else []
    plot_front(
        curves,
        path,
        front=([row["nfe"] for row in front], [_value(row, metric) for row in front]),
        floor=known,
        x="network evaluations of a sample" if along == "nfe" else "images seen in training",
        y=metric,
        log=("x" if along == "nfe" else "") + ("y" if positive else ""),
    )
    return path


def _loss(row: Mapping[str, Any], metric: str) -> float:
    """A number that is lower for a better row, and infinite where the metric is not known."""
    value = _value(row, metric)
    return -value if metric in HIGHER_IS_BETTER and math.isfinite(value) else value


def _value(row: Mapping[str, Any], metric: str) -> float:
    value = row["numbers"].get(metric, {}).get("value")
    return math.inf if value is None else float(value)


def _differs(key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({row[key] for row in rows if key in row}) > 1


def plot_beside(samples: Tensor, reference: Tensor | None, path: Path) -> Path:
    """Samples beside those of the reference, with values in 0 .. 1."""
    panels = {"samples": samples} if reference is None else {"samples": samples, "reference": reference}
    plot_samples(panels, path)
    return path


def lines_of(
    best: Mapping[str, Any], floor: Numbers, report: Mapping[str, Any], compared: Sequence[str]
) -> dict[str, Any]:
    """What is printed at the end: the numbers of the best row beside the floor, its recipe, and comparisons."""
    several = len(report["rows"]) > 1
    lines: dict[str, Any] = {f"best {next(iter(best['numbers']))}": best["name"]} if several else {}
    at_floor_size = best.get("numbers_at_floor_size", {})
    for name, number in best["numbers"].items():
        if name not in floor:
            lines[name] = text_of(number)
            continue
        count = floor[name]["n"]
        same = f"; {count} of these samples: {text_of(at_floor_size[name])}" if name in at_floor_size else ""
        lines[name] = f"{text_of(number):20} (held-out data: {text_of(floor[name])}, n = {floor[name]['n']}{same})"
    for split, number in best.get("bits_per_dim", {}).items():
        lines[f"{number['unit']} of {number['n']} {split} images, {number['estimator']}"] = text_of(number)
    lines |= report.get("copies", {}).get("lines", {})
    if several and len(report["pareto"]) > 1:
        lines["no row is both cheaper and better than"] = "; ".join(report["pareto"])
    for row in report["rows"]:
        if "kid_above_best" in row:
            apart = row["kid_above_best"]
            lines[f"kid of {row['name']} less that of {apart['best']}"] = text_of(apart)
    lines["recipe"] = best["recipe"]
    return lines | {f"compared, {i + 1}": line for i, line in enumerate(compared)}
