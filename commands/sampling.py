"""How a run is sampled: its configuration's sampler, with what the command line gives in place of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scorefield.commands.generate import grid as grid_of
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.run import Run
from scorefield.commands.trained import Trained
from scorefield.configs import build

TUNED = "tuned.json"  # in the run
REFERENCE, FINE = "unipc", 250  # of the flow's solution


def sampling_of(
    run: Run,
    *,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    budget: int | None = None,
    denoise: bool | None = None,
    trained: Trained | None = None,
) -> dict[str, Any]:
    """`solver` and `grid` (specs), `steps` and `denoise`: those given, and the configuration's for the others.

    The solver `tuned` is the setting of `--mode=tune`, with its own grid, steps and denoising. It has one more
    item `tuned`, for reports. Of several budgets it is that of `tuned:budget=10`, or else the largest, and not above
    `budget` or `steps` where these are given. Other solvers get their steps of a budget by `budget.within`.

    Args:
        run: the run.
        solver: in place of the configuration's, as the next three.
        grid: its times.
        steps: of the grid, or the largest budget.
        budget: network evaluations of a sample, which a tuned setting may not exceed.
        denoise: whether to end with an estimate of x0.
        trained: the weights that sample; a line on stderr says if the setting was tuned for others.

    Raises:
        ValueError: if nothing was tuned, or not for this budget; or for a grid or a denoising beside `tuned`.
    """
    if is_tuned(solver):
        check_alone(grid, denoise)
        return _tuned(run, str(solver), steps, budget, trained)
    given = {"solver": solver, "grid": grid, "steps": steps, "denoise": denoise}
    return {**run.config.sampling, **{key: value for key, value in given.items() if value is not None}}


def described(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The items of `sampling_of` for a report: specs as text."""
    return {key: build.unparse(value) if key in ("solver", "grid") else value for key, value in sampling.items()}


def is_tuned(solver: str | None) -> bool:
    """Whether a spec is that of the tuned setting."""
    return solver is not None and build.parse(solver)["name"] == "tuned"


def check_alone(grid: str | None, denoise: bool | None) -> None:
    """Raises ValueError for a grid or a denoising that is given beside the tuned setting."""
    if grid is not None or denoise is not None:
        other = "grid" if grid is not None else "denoise"
        raise ValueError(
            f"expected no --{other} beside --solver=tuned, which has its own, got one: leave it out, or name another "
            "--solver"
        )


def read_tuned(workdir: Path) -> dict[int, dict[str, Any]]:
    """What `--mode=tune` wrote, by budget; nothing where it did not run.

    Raises:
        ValueError: if the file cannot be read.
    """
    path = workdir / TUNED
    if not path.is_file():
        return {}
    try:
        stored: dict[str, dict[str, Any]] = json.loads(path.read_text())["budgets"]
        for setting in stored.values():
            _ = [setting[key] for key in ("solver", "grid", "steps", "denoise", "checkpoint_sha256")]
        return {int(budget): setting for budget, setting in stored.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read {path} ({error!r}): delete it, and tune again with --mode=tune") from None


def ends_of(run: Run, sampling: Mapping[str, Any]) -> tuple[float, float]:
    """The first and the last time of a setting's grid."""
    ts = grid_of(run, sampling)
    return float(ts[0]), float(ts[-1])


def ends_of_path(run: Run) -> tuple[float, float]:
    """The first and the last time of the path, where most grids begin and end."""
    return ends_of(run, {"grid": "log_snr", "steps": 1})


def flow_between(run: Run, ends: tuple[float, float], denoise: bool, steps: int = FINE) -> dict[str, Any]:
    """The setting that solves the probability flow: UniPC in many equal steps in log-SNR between two times."""
    start, end = (float(run.sde.log_snr(t)) for t in ends)
    levels = (-torch.linspace(start, end, steps + 1, dtype=torch.float64) / 2).exp().tolist()
    return {
        "solver": REFERENCE, "grid": {"name": "sigmas", "levels": levels}, "steps": steps, "denoise": denoise,
    }  # fmt: skip


def _tuned(run: Run, solver: str, steps: int | None, budget: int | None, trained: Trained | None) -> dict[str, Any]:
    options = {key: value for key, value in build.parse(solver).items() if key != "name"}
    if set(options) - {"budget"} or not isinstance(options.get("budget", 1), int):
        raise ValueError(f"expected --solver=tuned or tuned:budget=10, got {solver!r}: a whole number of evaluations")
    budgets, most = read_tuned(run.workdir), options.get("budget", steps if budget is None else budget)
    if budget is not None and options.get("budget", 0) > budget:
        raise ValueError(f"expected a tuned setting within --budget={budget}, got {solver}: leave one out")
    remedy = f"--mode=tune --budget={most or 10} --workdir={run.workdir}"
    if not budgets:
        raise ValueError(f"expected a tuned setting in {run.workdir / TUNED}, found none: make it with {remedy}")
    fits = [each for each in budgets if most is None or (each == most if "budget" in options else each <= most)]
    if not fits:
        known = ", ".join(map(str, sorted(budgets)))
        asks = f"of {most}" if "budget" in options else f"of at most --{'steps' if budget is None else 'budget'}={most}"
        raise ValueError(f"expected a budget {asks} evaluations in {run.workdir / TUNED}, found {known}: {remedy}")
    best = max(fits)
    setting = budgets[best]
    if trained is not None and trained.described["checkpoint_sha256"] != setting["checkpoint_sha256"]:
        on_stderr(f"warning: {run.workdir / TUNED} was tuned for other weights: tune again with {remedy}")
    return {
        **{key: setting[key] for key in ("solver", "grid", "steps", "denoise")},
        "tuned": {"budget": best, "checkpoint_sha256": setting["checkpoint_sha256"]},
    }
