"""The solver of `--mode=likelihood`: given by options, chosen by a tolerance, or kept from an earlier command."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scorefield.commands.generate import grid as grid_of
from scorefield.commands.likelihood.partial_results import PartialResults
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.likelihood import Exact, Hutchinson, Plan
from scorefield.likelihood.choose_solver import TRIAL_SAMPLES
from scorefield.likelihood.columns import Columns
from scorefield.likelihood.dataset import EXACT_DIMS, DatasetScorer
from scorefield.solvers import AdamsMoulton, FlowSolver
from scorefield.solvers.variables import SoftClippedLogSNR
from scorefield.training.distributed.ranks import Ranks

FIELDS = {"adams_moulton", "ts", "ratio", "finest", "met_in_trials", "trial_images", "trial_evaluations"}  # of a plan
TOLERANCE = 1e-2  # bits/dim, or nats/dim, where neither a tolerance nor a solver is given


def unit_of(scorer: DatasetScorer) -> str:
    """The unit of values, errors and tolerances."""
    return "nats/dim" if scorer.levels is None else "bits/dim"


def images_at_once(scorer: DatasetScorer, batch: int) -> int:
    """The images of an ode that go through the network at once.

    An exact divergence differentiates in several directions at once: of fewer images then. In few dimensions the
    networks are small, and all images are scored together.
    """
    directions = min(scorer.divergence.chunk, scorer.dims) if scorer.dims > EXACT_DIMS else 1
    return max(1, batch // directions)


def given_solver(
    run: Run, scorer: DatasetScorer, solver: str | None, grid: str | None, steps: int | None, tolerance: float | None
) -> dict[str, Any] | None:
    """Give the scorer the solver and the grid of the command line, or return None where a tolerance chooses them."""
    if solver is None and grid is None and steps is None:
        return None
    if tolerance is not None:
        raise ValueError("expected --tolerance, or --solver, --grid and --steps, got both: the tolerance chooses them")
    built = build.build(build.SOLVERS, solver or "adams_moulton")
    if not isinstance(built, FlowSolver):
        raise ValueError(f"{built} cannot integrate a density: use adams_moulton, heun, euler or adaptive")
    variable = getattr(built, "variable", None)
    if grid is None and isinstance(built, AdamsMoulton) and isinstance(variable, SoftClippedLogSNR):
        grid = f"soft_clipped:low={variable.low},high={variable.high},time_weight={variable.time_weight}"
    grid, steps = grid or "log_snr", 50 if steps is None else steps
    scorer.solver = built
    scorer.ts = grid_of(run, {"grid": grid, "steps": steps}).flip(0)
    return {"grid": grid, "steps": steps}


class KeptPlan:
    """The chosen solver of a run, in its file likelihood_plans.json, by a hash of everything that decides the choice.

    Args:
        folder: of the file.
        settings: weights, data, tolerance, divergence, dequantisation and prior.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._file, self._settings = folder / "likelihood_plans.json", settings
        self._key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, workdir: Path, output: Path, settings: dict[str, Any]) -> "KeptPlan":
        """In the run's folder, or in that of the output if the run's cannot be written."""
        return cls(workdir if os.access(workdir, os.W_OK) else output.parent, settings)

    def load(self, count: int) -> dict[str, Any] | None:
        """The plan, or None if there is none that was chosen on so many samples."""
        plan = self._all().get(self._key, {}).get("plan", {})
        usable = isinstance(plan, dict) and plan.keys() >= FIELDS and plan["trial_images"] >= count
        return plan if usable else None

    def save(self, plan: dict[str, Any]) -> None:
        """Add the plan to the file."""
        write_json(self._file, {**self._all(), self._key: {**self._settings, "plan": plan}})

    def _all(self) -> dict[str, Any]:
        try:
            kept = dict(json.loads(self._file.read_text()))
        except (OSError, TypeError, ValueError):  # a plan can be made again
            return {}
        return {key: entry for key, entry in kept.items() if isinstance(entry, dict)}


def choose(
    scorer: DatasetScorer,
    kept: KeptPlan,
    results: PartialResults,
    ranks: Ranks,
    tolerance: float,
    choose_divergence: bool,
    batch: int,
) -> dict[str, Any]:
    """Choose the scorer's plan on one rank for all, or take the kept choice; facts for a report.

    The choice is saved with the partial results, so that all of them are made by one plan.
    """
    if ranks.first and not (results.load_plan() or {}).keys() >= FIELDS:
        plan = kept.load(min(TRIAL_SAMPLES, len(scorer.stored)))
        if plan is None:
            plan = _chosen(scorer, tolerance, choose_divergence, batch)
            kept.save(plan)
            results.save_plan({**plan, "chosen_by": "this command"})
        else:
            print(
                f"the steps for {tolerance:g} {unit_of(scorer)} are those of an earlier command, chosen on "
                f"{plan['trial_images']} images",
                flush=True,
            )
            results.save_plan({**plan, "chosen_by": "an earlier command"})
    ranks.barrier()
    facts = results.load_plan()
    assert facts is not None
    solver = build.build(build.SOLVERS, facts.pop("adams_moulton"))
    ts = torch.tensor(facts.pop("ts"), dtype=torch.float64)
    points = tolerance * scorer.unit_of_points
    scorer.plan = Plan(
        solver, ts, points, facts["ratio"], facts["met_in_trials"], facts["trial_evaluations"], facts["finest"]
    )
    if choose_divergence:
        scorer.divergence = Hutchinson(probes=facts["probes"]) if "probes" in facts else Exact()
    return facts


def _chosen(scorer: DatasetScorer, tolerance: float, choose_divergence: bool, batch: int) -> dict[str, Any]:
    """A choice of the scorer, as it is kept."""
    count = min(TRIAL_SAMPLES, len(scorer.stored))
    print(
        f"choosing the steps for {tolerance:g} {unit_of(scorer)} on {count} images, for later commands too", flush=True
    )
    with progress_bar("choose", count) as bar:
        facts = scorer.choose(tolerance, choose_divergence, bar.part(count), batch=images_at_once(scorer, batch))
    plan = scorer.plan
    assert plan is not None
    assert isinstance(plan.solver.variable, SoftClippedLogSNR)
    written = build.unparse({"name": "adams_moulton", "order": plan.solver.order, **asdict(plan.solver.variable)})
    chosen = {
        "adams_moulton": written,
        "steps": plan.steps,
        "ts": plan.ts.tolist(),
        "ratio": plan.ratio,
        "finest": plan.finest,
    }
    return {**facts, **chosen, "met_in_trials": plan.met}


def check_given(scorer: DatasetScorer, batch: int) -> dict[str, Any]:
    """What half the steps of a given solver would change, for a report."""
    count = min(TRIAL_SAMPLES, len(scorer.stored))
    with progress_bar("check", count) as bar:
        change = scorer.change_from_half_the_steps(bar.part(count), batch=images_at_once(scorer, batch))
    if change is not None and abs(change) > TOLERANCE:
        on_stderr(
            f"half the steps change the value by {change:+.3g} {unit_of(scorer)}, above {TOLERANCE:g}: its error may "
            "be as large. Take more --steps, or none of --steps, --grid and --solver: then --tolerance chooses them"
        )
    return {"change_from_half_the_steps": change}


def errors_left(scorer: DatasetScorer, columns: Columns, index: NDArray[np.int64], tolerance: float) -> dict[str, Any]:
    """The solver's errors of all images, and by their numbers in the split those above the tolerance."""
    errors = columns["ode_solver_error"] / scorer.unit
    worst = errors.argsort(descending=True)[: int((~(errors <= tolerance)).sum())].tolist()
    named = [{"image": int(index[i]), "solver_error": float(errors[i])} for i in worst]
    return {
        "solver_error": float(errors.max()),
        "solver_error_rms": float(errors.square().mean().sqrt()),
        "tolerance_met": not named,
        "above_tolerance": named,
    }
