"""Along the probability flow, from data to noise or back, in batches."""

from typing import Any

import torch
from torch import Tensor

from scorefield.commands.generate import grid as grid_of
from scorefield.commands.generate import of_rows, prepared
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.sde_lib.denoiser import Cond, DenoiserLike
from scorefield.solvers import BELM, Solver

Options = dict[str, Any]  # solver, grid and steps
SOLVER, GRID, STEPS = "unipc:order=2", "log_snr", 100  # docs/ddim.md has the round trips of others
CHECKED = 16  # images whose round trip is measured


def along_flow(
    run: Run,
    denoiser: DenoiserLike,
    x: Tensor,
    options: Options,
    *,
    up: bool,
    batch: int = 256,
    cond: Cond | None = None,
    before: Tensor | None = None,
    ts: Tensor | None = None,
    show: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Take `x (N, *D)` from data to noise (`up`), or from noise to data, in batches. The result is on the CPU.

    BELM also returns the states before the last, (N, *D), and starts from the states `before` where there are any.

    Args:
        run: the run, for its path.
        denoiser: E[x0 | x].
        x: where to begin.
        options: `solver`, `grid` and `steps`.
        up: the direction.
        batch: samples in one batch.
        cond: keywords of the denoiser, with a row for each sample, (N, ...).
        before: see above.
        ts: falling times, in place of those of `grid` and `steps`.
        show: whether to show the progress.

    Raises:
        ValueError: for a stochastic solver, or values that are not finite.
    """
    solver, ts = flow_solver(options), grid_of(run, options) if ts is None else ts
    ts = ts.flip(0) if up else ts
    arrived, befores = [], []
    with progress_bar("encode" if up else "decode", len(x), show) as bar:
        for first in range(0, len(x), batch):
            rows = slice(first, first + batch)
            chunk, neighbour = x[rows].to(run.device), None if before is None else before[rows].to(run.device)
            given, on_step = prepared(denoiser, of_rows(cond, run.device, rows), run.shape), bar.steps(len(chunk))
            if isinstance(solver, BELM):
                there, neighbour = solver.pair(denoiser, run.sde, chunk, ts, neighbour, cond=given, on_step=on_step)
                befores.append(neighbour.cpu())
            else:
                there = solver(denoiser, run.sde, chunk, ts, cond=given, on_step=on_step)
            arrived.append(there.cpu())
    there = torch.cat(arrived)
    if not bool(there.isfinite().all()):
        raise ValueError(f"{solver} gave values that are not finite: use more --steps, or look for NaN in the input")
    return there, torch.cat(befores) if befores else None


def round_trip(
    run: Run,
    denoiser: DenoiserLike,
    x0: Tensor,
    latent: Tensor,
    options: Options,
    *,
    cond: Cond | None = None,
    before: Tensor | None = None,
    ts: Tensor | None = None,
) -> float:
    """The root mean square distance of the first 16 images from their decoded latents, in the model's values."""
    some, before = latent[:CHECKED], None if before is None else before[:CHECKED]
    cond = of_rows(cond, run.device, slice(CHECKED))
    back, _ = along_flow(run, denoiser, some, options, up=False, cond=cond, before=before, ts=ts, show=False)
    return rms(back, x0[:CHECKED].cpu())


def checked_times(run: Run, options: Options, batch: int) -> Tensor:
    """The falling times of the options, (steps + 1,).

    Raises:
        ValueError: for a stochastic solver, no such grid, or an empty batch.
    """
    if batch < 1:
        raise ValueError(f"expected --batch of at least 1, got {batch}")
    flow_solver(options)
    return grid_of(run, options)


def flow_solver(options: Options) -> Solver:
    """The solver of the options.

    Raises:
        ValueError: if it is stochastic.
    """
    solver: Solver = build.build(build.SOLVERS, options["solver"])
    if solver.stochastic:
        raise ValueError(
            f"{solver} adds noise and cannot encode: use unipc, ddim, heun or adaptive, or belm to invert exactly"
        )
    return solver


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference."""
    return float((a - b).square().mean().sqrt())
