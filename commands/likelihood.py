"""The likelihood of a data set under a trained run, in bits/dim."""

import importlib.metadata
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.generate import as_spec, conditioned, progress_bar
from commands.generate import grid as grid_of
from commands.run import Trained, open_trained, output_path, stored_tensor, write_arrays, write_json
from configs import build
from evaluation import save_bars
from likelihood import Divergence, bits_per_dim, log_likelihood, mean_and_error
from solvers import Adaptive, FlowSolver, PerSampleNoise
from solvers.clocks import Saturated

CHECKED = 32  # images that are scored again with half the steps, to show what the steps cost


def likelihood(
    workdir: Path,
    *,
    split: str = "test",
    num: int | None = None,
    solver: str = "adams_moulton",
    grid: str | None = None,
    steps: int = 50,
    divergence: str = "hutchinson",
    seed: int = 0,
    batch: int = 128,
    ema: bool = True,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Bits/dim of a split (or its first `num`), or nats/dim where the data is continuous, with its standard error.

    The grid is, unless given, equal steps by the solver's own clock if that is saturated, else in log-SNR. Every image
    is counted once. On a grid, the first 32 are scored again with half the steps, and the report says how far that
    moved them. Writes a report (JSON), the values and latents of each image (.npz), and a histogram.

    Raises:
        ValueError: if there is no trained run, or the solver cannot integrate a density.
    """
    if batch < 1 or (num is not None and num < 1):
        raise ValueError(f"expected --num and --batch of at least 1, got {num} and {batch}")
    trained = open_trained(workdir, device, ema)
    path = output_path(output, workdir / f"likelihood_{split}.json")
    run = trained.run
    engine = build.build(build.SOLVERS, as_spec(solver))
    if not isinstance(engine, FlowSolver):
        raise ValueError(f"{engine} cannot integrate a density: use adams_moulton, heun, euler or adaptive")
    trace = build.build(build.DIVERGENCES, as_spec(divergence))
    grid = grid or _own_grid(engine)
    ts = grid_of(run, {"grid": grid, "steps": steps}).flip(0)
    dataset = run.dataset(split)
    stored = stored_tensor(dataset, num)
    labels = torch.as_tensor(dataset.label[:num]) if run.num_classes and dataset.label is not None else None

    began = time.perf_counter()
    columns, nfe = _densities(trained, stored, labels, trace, engine, ts, seed, batch)
    seconds = time.perf_counter() - began

    dims = stored[0].numel()
    discrete = run.data.levels is not None
    values = bits_per_dim(columns["log_prob"], dims) if discrete else -columns["log_prob"] / dims
    unit = "bits_per_dim" if discrete else "nats_per_dim"
    mean, error = mean_and_error(values)
    if not math.isfinite(mean):
        raise ValueError(f"the likelihood is {mean}: take more --steps, or --solver=adaptive")
    change = None
    if not isinstance(engine, Adaptive) and steps > 1:
        part = slice(0, min(len(stored), CHECKED))
        coarse = grid_of(run, {"grid": grid, "steps": steps // 2}).flip(0)
        some = None if labels is None else labels[part]
        again, _ = _densities(trained, stored[part], some, trace, engine, coarse, seed, batch)
        change = _per_dim((again["log_prob"] - columns["log_prob"][part]), dims, discrete)
    report = {
        "kind": "probability-flow ODE" + (", uniform dequantisation: an upper bound" if discrete else ""),
        unit: mean,
        "standard_error": error if math.isfinite(error) else None,
        "n": len(values),
        "split": split,
        "solver": str(engine),
        "grid": grid,
        "steps": steps,
        "nfe": nfe,
        "change_from_half_the_steps": change,
        "divergence": str(trace),
        "probe_error": _per_dim(columns.get("probe_error"), dims, discrete),
        "prior_kl": _per_dim(columns["prior_kl"], dims, discrete),
        "t_min": run.sde.t_min,
        "t_max": run.sde.t_max,
        "levels": run.data.levels,
        "seed": seed,
        "data": dataset.name,
        "data_sha256": dataset.fingerprint,
        **trained.described,
        "seconds": round(seconds, 2),
        "torch": torch.__version__,
        "scorefield": _version(),
    }
    write_json(path, report)
    write_arrays(path.with_suffix(".npz"), **{unit: values}, **columns)
    picture = save_bars(values, path.with_suffix(".png"), unit.replace("_", " "))
    told: dict[str, Any] = {unit: f"{mean:.4f} +- {error:.4f} (n = {len(values)})", "nfe": nfe}
    if change is not None:
        told["change from half the steps"] = f"{change:+.4f} (order 2 still owes about a third, order 3 a seventh)"
    return {**told, "files": [str(path), str(path.with_suffix(".npz")), str(picture)]}


def _own_grid(engine: FlowSolver) -> str:
    clock = getattr(engine, "clock", None)
    return f"saturated:low={clock.low},high={clock.high}" if isinstance(clock, Saturated) else "log_snr"


def _densities(
    trained: Trained,
    stored: Tensor,
    labels: Tensor | None,
    trace: Divergence,
    engine: FlowSolver,
    ts: Tensor,
    seed: int,
    batch: int,
) -> tuple[dict[str, Tensor], float]:
    """Log-densities in nats and what belongs to them, each (N, ...), and the evaluations a sample took."""
    run, evaluations = trained.run, 0.0
    found: dict[str, list[Tensor]] = {"log_prob": [], "latent": [], "prior_kl": [], "probe_error": []}
    with progress_bar("likelihood", len(stored)) as bar:
        for first in range(0, len(stored), batch):
            rows = slice(first, min(first + batch, len(stored)))
            indices = range(rows.start, rows.stop)
            x0, log_det = run.to_model(stored[rows], uniform=PerSampleNoise(seed, indices).uniform)
            model = conditioned(trained.denoiser, None if labels is None else labels[rows].to(run.device), 1.0)
            density = log_likelihood(
                model, run.sde, x0.to(run.device), divergence=trace, solver=engine, ts=ts,
                noise=PerSampleNoise(seed + 1, indices), on_step=bar.steps(len(indices)),
            )  # fmt: skip
            found["log_prob"].append(density.log_prob.double().cpu() + log_det)
            found["latent"].append(density.latent.cpu())
            found["prior_kl"].append(run.sde.prior_kl(x0).double())
            if density.std_error is not None:
                found["probe_error"].append(density.std_error.double().cpu())
            evaluations += density.nfe * len(indices)
    return {name: torch.cat(values) for name, values in found.items() if values}, evaluations / len(stored)


def _per_dim(nats: Tensor | None, dims: int, bits: bool) -> float | None:
    """The mean of a quantity in nats, in the report's unit."""
    if nats is None:
        return None
    return float(nats.mean()) / dims / (math.log(2) if bits else 1.0)


def _version() -> str:
    try:
        return importlib.metadata.version("scorefield")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
