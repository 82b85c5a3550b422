"""The likelihood of a data set under a trained run, by one estimator or several side by side."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorefield.commands.generate import grid as grid_of
from scorefield.commands.generate import progress_bar
from scorefield.commands.likelihood.estimates import FEW, MEANINGS, Columns, Task
from scorefield.commands.likelihood.partial_results import PartialResults, Ranks
from scorefield.commands.likelihood.report import estimate, prior_kl, told_of, versions
from scorefield.commands.run import Run, Trained, open_trained, output_path, stored_tensor, write_arrays, write_json
from scorefield.commands.train_dequantiser import load_dequantiser
from scorefield.configs import build
from scorefield.evaluation import save_bars
from scorefield.likelihood import Dequantisation, Exact, GaussianPrior, Hutchinson, HutchPlusPlus, Moments
from scorefield.likelihood.choose_solver import PILOTS
from scorefield.solvers import AdamsMoulton, Adaptive, FlowSolver
from scorefield.solvers.variables import SoftClippedLogSNR

TOLERANCE = 1e-3  # bits/dim, where neither it nor a solver is given
MOMENTS = 10_000  # training images that a fitted prior is of
PRIORS = ("standard", "data")


def likelihood(
    workdir: Path,
    *,
    data: str | None = None,
    split: str = "test",
    num: int | None = None,
    estimators: Sequence[str] = ("ode",),
    tolerance: float | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    divergence: str | None = None,
    dequantisation: str | None = None,
    prior: str = "standard",
    draws: int = 32,
    chain: int = 1000,
    variance: str = "small",
    seed: int = 0,
    batch: int = 128,
    ema: bool = True,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Bits/dim of a split (or its first `num`), nats/dim where the data is continuous, by each of the estimators.

    Every image is counted once. The work is kept in parts beside the output: killed and run again the command goes on
    where it was, to the same number, and under torchrun the ranks share it. Writes a report (JSON), each image's values
    and latents (.npz), and a histogram.

    Args:
        workdir: of the run.
        data: a data set in the place of the run's own, as on a command line.
        split: "train" or "test".
        num: the first so many images.
        estimators: of "ode", "dsm", "vlb" and "elbo" (`commands.likelihood.estimates.MEANINGS`).
        tolerance: what the solver of the ode may leave in a value, in bits/dim: solver, grid and the number of probes
            are then chosen on the first 32 images. 1e-3 unless a solver, grid or steps are given.
        solver: chosen by hand instead; what half the steps would change is then measured on the first 32 images.
        grid: of its times.
        steps: of the grid, 50 by default.
        divergence: "exact", "hutchinson" or "hutchpp"; exact in up to 16 dimensions, else Hutchinson's, by default.
        dequantisation: "uniform" (the default), "importance:samples=8", "truncated_normal", or "variational" (after
            --mode=train_dequantiser).
        prior: "standard", what the model samples from, or "data", with the mean and variance of the training data.
        draws: evaluations that a bound spends on an image.
        chain: steps of the vlb.
        variance: of those steps, "small" or "large".
        seed: of dequantisation, probes, times and noise.
        batch: images at once.
        ema: use the averaged weights.
        device: see `open_run`.
        output: the report, .json.

    Raises:
        ValueError: if there is no trained run, or something is asked for that it cannot give.
    """
    if batch < 1 or (num is not None and num < 1) or draws < 2 or chain < 1 or seed < 0:
        raise ValueError(
            f"expected --num, --batch and --chain of at least 1, --draws of 2 and --seed of 0, got {num}, {batch}, "
            f"{chain}, {draws} and {seed}"
        )
    if variance not in ("small", "large"):
        raise ValueError(f"expected --variance of small or large, got {variance!r}")
    if (tolerance is not None and not tolerance > 0) or (steps is not None and steps < 1):
        raise ValueError(f"expected a positive tolerance and --steps of at least 1, got {tolerance} and {steps}")
    names = _checked(estimators)
    if "ode" not in names and any(
        each is not None for each in (tolerance, solver, grid, steps, divergence, dequantisation)
    ):
        raise ValueError(
            "--tolerance, --solver, --grid, --steps, --divergence and --dequantisation are of ode, which is not among "
            f"the --estimators {', '.join(names)}"
        )
    ranks = Ranks.of_environment()
    trained = open_trained(workdir, device, ema)
    path = output_path(output, workdir / f"likelihood_{split}.json")
    run = trained.run.on(data)
    dataset = run.dataset(split)
    stored = stored_tensor(dataset, num)
    if not bool(torch.as_tensor(stored, dtype=torch.float64).isfinite().all()):
        raise ValueError(f"expected finite values, got NaN or infinity in {dataset.name}: mend or leave out its images")
    labels = torch.as_tensor(dataset.label[:num]) if run.num_classes and dataset.label is not None else None
    how, told, learned = _dequantisation(trained, dequantisation)
    task = Task(trained, stored, labels, how, _prior(run, prior), seed, draws, chain, variance)
    if divergence is not None:
        task.divergence = build.build(build.DIVERGENCES, divergence)
    by_hand = _by_hand(task, solver, grid, steps, tolerance)
    settings = {
        "split": split, "num": len(stored), "estimators": names, "tolerance": tolerance, "solver": solver, "grid": grid,
        "steps": steps, "divergence": divergence, "dequantisation": told, "prior": prior, "draws": draws,
        "chain": chain, "variance": variance, "seed": seed, "batch": batch, "data_sha256": dataset.fingerprint,
        "versions": versions(), "dequantiser_sha256": learned, **trained.described,
    }  # fmt: skip
    given = [task.prior.mean.tolist(), task.prior.std.tolist()]
    parts = PartialResults(
        path, {**settings, "run": run.described(), "prior_moments": given, "device": str(run.device)}
    )
    found: dict[str, Any] = {}
    if "ode" in names:
        wanted = TOLERANCE if tolerance is None else tolerance
        found = by_hand or _plan(task, parts, ranks, wanted, divergence is None)
        if by_hand is not None and divergence is None and task.dims <= FEW:
            task.divergence = Exact()
    _score(task, names, parts, ranks, batch)
    if ranks.rank > 0:
        ranks.barrier()
        return {}
    if by_hand is not None and "ode" in names:
        found["change_from_half_the_steps"] = _change_from_half(task)
    elif "ode" in names:
        found |= task.checked()
    columns = _gathered(parts, names, len(stored), batch)
    unit = "bits_per_dim" if run.data.levels is not None else "nats_per_dim"
    values = {name: -columns[name] / task.unit for name in names}
    estimates = {name: estimate(task, name, unit, values[name], columns, found) for name in names}
    for name, each in estimates.items():
        if not math.isfinite(each[unit]):
            raise ValueError(f"the likelihood by {name} is {each[unit]}: take more --steps, or --solver=adaptive")
    report = {
        unit: estimates[names[0]][unit],
        "standard_error": estimates[names[0]]["standard_error"],
        "n": len(stored),
        "estimates": estimates,
        "dequantisation": told,
        "prior": prior,
        "prior_kl": prior_kl(task),
        "t_min": run.sde.t_min,
        "t_max": run.sde.t_max,
        "levels": run.data.levels,
        "data": dataset.name,
        **{key: settings[key] for key in ("split", "seed", "batch", "data_sha256", "dequantiser_sha256", "versions")},
        **trained.described,
    }
    write_json(path, report)
    errors = {f"{name}_error": columns[f"{name}_error"] / task.unit for name in names if f"{name}_error" in columns}
    write_arrays(path.with_suffix(".npz"), **{unit: values[names[0]]}, **values, **errors, latent=columns.get("latent"))
    picture = save_bars(torch.as_tensor(values[names[0]]), path.with_suffix(".png"), unit.replace("_", " "))
    parts.remove()
    ranks.barrier()
    return {**told_of(estimates, unit), "files": [str(path), str(path.with_suffix(".npz")), str(picture)]}


def _checked(estimators: Sequence[str]) -> list[str]:
    names = [estimators] if isinstance(estimators, str) else list(estimators)
    odd = [name for name in names if name not in MEANINGS]
    if odd or not names or len(set(names)) < len(names):
        raise ValueError(f"expected --estimators among {', '.join(MEANINGS)}, each once, got {', '.join(names)!r}")
    return names


def _dequantisation(trained: Trained, asked: str | None) -> tuple[Dequantisation | None, str | None, str | None]:
    """What was asked for, as it is written, and the hash of its weights if it has any."""
    if trained.run.data.levels is None:
        if asked is not None:
            raise ValueError(
                "continuous data has a density, whose value changes with the unit it is measured in: it is given in "
                "nats/dim, and bits/dim, which count levels, are refused. Leave out --dequantisation"
            )
        return None, None, None
    spec = build.modern(build.DEQUANTISATIONS, asked or "uniform")
    if spec["name"] == "variational":
        flow, facts = load_dequantiser(trained)
        return build.build(build.DEQUANTISATIONS, spec, flow=flow), build.unparse(spec), facts["dequantiser_sha256"]
    found: Dequantisation = build.build(build.DEQUANTISATIONS, spec)
    return found, build.unparse(spec), None


def _prior(run: Run, name: str) -> GaussianPrior:
    if name not in PRIORS:
        raise ValueError(f"expected --prior of {' or '.join(PRIORS)}, got {name!r}")
    if name == "standard":
        return GaussianPrior.standard(run.sde)
    return GaussianPrior.matched(run.sde, Moments.of(run.centred(stored_tensor(run.dataset("train"), MOMENTS))))


def _by_hand(
    task: Task, solver: str | None, grid: str | None, steps: int | None, tolerance: float | None
) -> dict[str, Any] | None:
    """The solver and grid that were asked for, or None where a tolerance is to choose them."""
    if solver is None and grid is None and steps is None:
        return None
    if tolerance is not None:
        raise ValueError("expected --tolerance, or --solver, --grid and --steps, got both: the tolerance chooses them")
    engine = build.build(build.SOLVERS, solver or "adams_moulton")
    if not isinstance(engine, FlowSolver):
        raise ValueError(f"{engine} cannot integrate a density: use adams_moulton, heun, euler or adaptive")
    clock = getattr(engine, "clock", None)
    if grid is None and isinstance(engine, AdamsMoulton) and isinstance(clock, SoftClippedLogSNR):
        grid = f"saturated:low={clock.low},high={clock.high},pace={clock.pace}"
    grid, steps = grid or "log_snr", 50 if steps is None else steps
    task.solver = engine
    task.ts = grid_of(task.run, {"grid": grid, "steps": steps}).flip(0)
    return {"grid": grid, "steps": steps}


def _plan(task: Task, parts: PartialResults, ranks: Ranks, tolerance: float, choose: bool) -> dict[str, Any]:
    """What the pilots found, by one rank for all, and once for a work that is taken up again."""
    if ranks.rank == 0 and parts.noted("plan") is None:
        print(f"choosing a solver for {tolerance:g} bits/dim on {min(PILOTS, len(task.stored))} images", flush=True)
        found = task.planned(tolerance, choose)
        assert isinstance(task.solver, AdamsMoulton)
        assert isinstance(task.solver.clock, SoftClippedLogSNR)
        clock, assured = task.solver.clock, task.ts
        assert assured is not None
        constants = {"low": clock.low, "high": clock.high, "spread": clock.spread, "pace": clock.pace}
        written = build.unparse({"name": "adams_moulton", "order": task.solver.order, **constants})
        parts.note("plan", {**found, "adams_moulton": written, "steps": len(assured) - 1, "ts": assured.tolist()})
    ranks.barrier()
    noted = parts.noted("plan")
    assert noted is not None
    task.solver = build.build(build.SOLVERS, noted.pop("adams_moulton"))
    task.ts = torch.tensor(noted.pop("ts"), dtype=torch.float64)
    if choose:
        task.divergence = Hutchinson(probes=noted["probes"]) if "probes" in noted else Exact()
    return noted


def _score(task: Task, names: Sequence[str], parts: PartialResults, ranks: Ranks, batch: int) -> None:
    """Score what is not scored yet, a batch and an estimator at a time."""
    total = len(task.stored)
    todo = [(name, first) for name in names for first in range(0, total, batch) if _part(name, first) not in parts]
    ranks.barrier()  # all have seen what is left before any of it is done
    with progress_bar("likelihood", sum(min(batch, total - first) for _, first in todo), ranks.rank == 0) as bar:
        for name, first in ranks.shard(todo):
            part, rows = _part(name, first), slice(first, min(first + batch, total))
            began = time.perf_counter()
            columns = task.ode(rows, bar.steps) if name == "ode" else getattr(task, name)(rows)
            if name != "ode":
                bar.skip(rows.stop - rows.start)
            seconds = np.full(rows.stop - rows.start, (time.perf_counter() - began) / (rows.stop - rows.start))
            parts.put(part, {**{key: column.numpy() for key, column in columns.items()}, f"{name}_seconds": seconds})
    ranks.barrier()


def _part(name: str, first: int) -> str:
    return f"{name}_{first:09d}"


def _change_from_half(task: Task) -> float | None:
    """What half the steps change in the mean of the first images, in the report's unit; None off a grid.

    Probes, where they can be, are kept for both.
    """
    assert task.solver is not None
    assert task.ts is not None
    if isinstance(task.solver, Adaptive) or len(task.ts) < 3:
        return None
    kept = task.divergence
    if isinstance(kept, Hutchinson | HutchPlusPlus):
        kept = replace(kept, fresh=False)
    rows, half = slice(0, min(PILOTS, len(task.stored))), torch.cat([task.ts[:-1:2], task.ts[-1:]])
    values = [replace(task, ts=ts, divergence=kept).ode(rows)["ode"] for ts in (task.ts, half)]
    return float((values[0] - values[1]).mean()) / task.unit


def _gathered(parts: PartialResults, names: Sequence[str], total: int, batch: int) -> Columns:
    columns: Columns = {}
    for name in names:
        found = [parts.get(_part(name, first)) for first in range(0, total, batch)]
        columns |= {key: torch.as_tensor(np.concatenate([part[key] for part in found])) for key in found[0]}
    return columns
