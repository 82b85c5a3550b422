"""Where a command writes: nothing is replaced without a line."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scorefield.commands.on_stderr import on_stderr
from scorefield.training.checkpoints.atomic import atomic_file

SIDES = (".npz", ".json", ".png")  # of one output: its arrays, its report and its picture
NAMED = 3  # differences that a line names


def check_output(output: str | None, suffix: str) -> None:
    """Raises ValueError unless `output` is None or names a file with this suffix, before a command computes."""
    if output is not None and (Path(output).suffix != suffix or Path(output).is_dir()):
        raise ValueError(f"expected --output to name a {suffix} file, got {output!r}")


def output_path(output: str | None, default: Path, made_by: Mapping[str, Any] | None = None) -> Path:
    """The file to write now: `output`, or the default, with a number if other settings made the one that is there.

    The picture and the report of a command have the same name with other suffixes. Lines on stderr say what is
    replaced, what is kept under the plain name, and which folder is new.

    Args:
        output: given on the command line.
        default: in the run.
        made_by: the settings that decide the content, as in the report. Without them the default is replaced.
    """
    if output is None and made_by is not None:
        return _numbered(default, json.loads(json.dumps(made_by)))
    path = default if output is None else Path(output)
    if _is_there(path):
        on_stderr(f"replaces {path}")
    if not path.parent.is_dir():
        on_stderr(f"makes the folder {path.parent}")
    return path


def newest(workdir: Path, name: str) -> Path:
    """The newest of the files NAME.npz, NAME_2.npz and so on, or NAME.npz if there is none."""
    files = [path for path in workdir.glob(f"{name}*.npz") if path.stem[len(name) + 1 :].isdigit() or path.stem == name]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=workdir / f"{name}.npz")


def report_beside(path: Path) -> dict[str, Any]:
    """The report of an output, or {} if there is none that reads."""
    try:
        report = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _numbered(default: Path, made_by: dict[str, Any]) -> Path:
    for n in itertools.count(1):
        path = default if n == 1 else default.with_name(f"{default.stem}_{n}{default.suffix}")
        if not _is_there(path):
            break
        report = report_beside(path)
        if all(report.get(key) == value for key, value in made_by.items()):
            on_stderr(f"replaces {path}, which the same settings made")
            return path
    if n > 1:
        on_stderr(f"keeps {default}{_differences(report_beside(default), made_by)} and writes {path}")
    return path


def _differences(report: dict[str, Any], made_by: dict[str, Any]) -> str:
    others = [key for key, value in made_by.items() if report.get(key) != value]
    others.sort(key=lambda key: key.endswith("sha256"))  # which tells a reader least
    named = [f"{key} {_short(report.get(key))}, not {_short(made_by[key])}" for key in others]
    more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
    return f" ({'; '.join(named[:NAMED] + more)})" if report else ""


def _is_there(path: Path) -> bool:
    return any(path.with_suffix(side).exists() for side in SIDES)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def write_arrays(path: Path, **arrays: Any) -> Path:
    """Write those arrays that are not None to an .npz, completely or not at all."""
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items() if a is not None})
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON, completely or not at all."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")
    return path
