"""The command line that makes a report again, read off the report."""

import importlib
import inspect
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from scorefield.commands.evaluate.command import METRICS_OF_IMAGES
from scorefield.commands.modes import KEYWORDS, MODES, OPTIONS, SEVERAL
from scorefield.commands.report.found import Found, Report
from scorefield.configs import build

# Options that change memory, speed or places, and not the result.
NOT_SHOWN = ("batch", "device", "output", "compile")


def command_of(found: Found, report: Report) -> str:
    """The command of a report, without the options that have their default value."""
    content, options = report.content, list[str]()
    file, function, _ = MODES[report.mode]
    takes = inspect.signature(getattr(importlib.import_module(f"scorefield.commands.{file}"), function)).parameters
    given = dict(content)
    if "weights" in content:
        given["ema"] = content["weights"] == "ema"
    if report.mark and isinstance(content.get("checkpoint"), str):
        given["checkpoint"] = content["checkpoint"]
    else:
        given.pop("checkpoint", None)
    if report.mode in ("sample", "compare"):
        given = {key: value for key, value in given.items() if not _of_the_run(found, key, value)}
    if isinstance(tuned := content.get("tuned"), dict):
        given = {key: value for key, value in given.items() if key not in ("solver", "grid", "steps", "denoise")}
        given["solver"] = f"tuned:budget={tuned.get('budget')}"
    if isinstance(content.get("guide"), dict):
        given["guide"] = content["guide"].get("name")
    for side in ("from", "to"):  # of an edit
        if isinstance(content.get(side), dict):
            given[f"{side}_label"] = content[side].get("label")
    if report.mode == "likelihood" and (content.get("dequantisation") == "uniform" or not _by_flow(content)):
        given.pop("dequantisation", None)
    classes = (*found.run.data.class_names, *range(found.run.data.num_classes or 0))
    for key in ("label", "from_label", "to_label"):
        if given.get(key) not in classes:
            given.pop(key, None)  # words of a report, as "each in turn"
    if content.get("images") == "all":
        given.pop("num", None)
    if report.mode == "evaluate":
        given = _of_an_evaluation(content)
    elif given.pop("data", None) not in (None, *found.data_names) and "data" in takes:
        options.append("--data=...")  # whose spec the report does not have
    for key, parameter in takes.items():
        if key in NOT_SHOWN or key not in given or (given[key] is False and parameter.default is None):
            continue
        flag = {of: name for name, of in KEYWORDS.items()}.get(key, key)
        if flag in OPTIONS and not _same(given[key], parameter.default):
            options += flags_of(flag, given[key])
    if report.mode == "sample" and (trajectory := _trajectory(report.path)):
        options.append(f"--trajectory={trajectory}")
    return command_line(report.mode, found.workdir, *options)


def command_line(mode: str, workdir: Path, *options: str) -> str:
    """A command as one types it."""
    return shlex.join(["scorefield", f"--mode={mode}", f"--workdir={workdir}", *options])


def _by_flow(content: dict[str, Any]) -> bool:
    """Whether a likelihood is that of the flow too, whose options bounds do not take."""
    return "ode" in (content.get("estimators") or ())


def _of_an_evaluation(content: dict[str, Any]) -> dict[str, Any]:
    """The options of --mode=evaluate, which its report has as they were given."""
    asked = dict(content.get("asked", {}))
    guiding = asked.pop("guidance", None) or {}
    renamed = {f"guidance_{key}": guiding.get(key) for key in ("interval", "rescale", "parallel", "norm")}
    usual = content.get("metrics") == list(METRICS_OF_IMAGES) and not asked.get("reference")
    return {
        **asked, **renamed, **{key: guiding.get(key) for key in ("guidance", "guide", "classifier")},
        "num": content["recipe"]["samples"], "seed": content.get("seed"),
        "metrics": None if usual else content.get("metrics"),
    }  # fmt: skip


def _of_the_run(found: Found, key: str, value: Any) -> bool:
    """Whether a report has what the run's configuration says of its sampling."""
    own = found.run.config.sampling.get(key)
    return key in found.run.config.sampling and value == (build.unparse(own) if key in ("solver", "grid") else own)


def _same(value: Any, default: Any) -> bool:
    plain = list(default) if isinstance(default, tuple) else default
    return value is None or bool(value == plain)


def flags_of(name: str, value: Any) -> list[str]:
    """An option as one types it; none for a value that no option has."""
    if OPTIONS[name][0] is bool:
        return [f"--{'' if value else 'no'}{name}"] if isinstance(value, bool) else []
    if isinstance(value, dict):
        return []
    several = isinstance(value, list | tuple)
    if name in SEVERAL and several:
        return [f"--{name}={each}" for each in value]
    return [f"--{name}={','.join(map(str, value)) if several else value}"]


def _trajectory(path: Path) -> int:
    """How many trajectories stand beside samples."""
    place = path.with_name(f"{path.stem}_trajectory.npz")
    try:
        with np.load(place, allow_pickle=False) as file:
            return int(file["x"].shape[1])
    except (OSError, ValueError, KeyError, IndexError):
        return 0
