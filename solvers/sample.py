"""Samples in one call: noise of the prior, a solver along a grid, and a last denoising."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefield.sde_lib import SDE, MultivariateVP
from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.denoiser import Cond, DenoiserLike, predict_x0, take_rows
from scorefield.sde_lib.sde import check_path
from scorefield.solvers import grids
from scorefield.solvers.multistep.adams import Adams
from scorefield.solvers.noise import PerSampleNoise
from scorefield.solvers.schedule import check_grid
from scorefield.solvers.solver import OnStep, Solver

Grid = Callable[[SDE, int], Tensor]


def sample(
    denoiser: DenoiserLike,
    sde: SDE,
    shape: tuple[int, ...],
    *,
    solver: Solver = Adams(variable="soft_clipped"),  # noqa: B008 - frozen
    steps: int = 20,
    grid: Grid | Tensor = grids.soft_clipped,
    cond: Cond | None = None,
    denoise: bool = True,
    seed: int = 0,
    first: int = 0,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: OnStep = None,
) -> Tensor:
    """Samples (B, *D) of the model, in its own values.

    Sample i of a seed has the same noise in any batch.

    Args:
        denoiser: E[x0 | x], see `Solver`.
        sde: the path. For a path with a latent code, each sample gets a code, which the denoiser gets as `code` too.
        shape: (B, *D).
        solver: any solver. The default is the best with 15 to 25 evaluations on held-out problems (docs/solvers.md).
        steps: of the grid.
        grid: a function of `solvers.grids`, or a falling grid of times.
        cond: keywords for the denoiser. Tensors have a row for each sample, (B, ...).
        denoise: end with x <- D(x) at the grid's last time. A solver's own last denoising is left out.
        seed: of the noise.
        first: number of the first sample in the run of this seed.
        batch: number of samples at once, all by default.
        dtype: of the samples.
        device: of the samples.
        on_step: called with a `Progress` after each step of each batch.

    Raises:
        ValueError: see `Solver`; for a batch below 1, a rising grid, or arguments of another kind.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"expected a batch of at least 1, got {batch}")
    _check(solver, grid, shape, dtype)
    if not isinstance(sde, MultivariateVP):
        check_path(sde)
    ts = grid if isinstance(grid, Tensor) else grid(sde, steps)
    check_grid(ts)
    if len(ts) > 1 and float(ts[0]) < float(ts[-1]):
        raise ValueError("expected a falling grid to sample, got a rising one: flip it, ts.flip(0)")
    solver, count = solver.without_denoising(), shape[0]
    samples = []
    for start in range(0, max(count, 1), batch or max(count, 1)):
        rows = slice(start, min(start + (batch or count), count))
        part = take_rows(cond or {}, rows, count)
        noise = PerSampleNoise(seed, range(first + rows.start, first + rows.stop))
        path = sde
        if isinstance(sde, MultivariateVP):
            with torch.no_grad():
                part["code"] = sde.draw(rows.stop - rows.start, noise.uniform)
                path = sde.given(part["code"])
        x = path.prior((rows.stop - rows.start, *shape[1:]), noise=noise, dtype=dtype, device=device)
        x = solver(denoiser, path, x, ts, cond=part, noise=noise, on_step=on_step)
        if denoise and not solver.returns_x0:
            with torch.no_grad():
                x = predict_x0(denoiser, x, *path.scales(float(ts[-1])), **part)
        samples.append(x)
    return torch.cat(samples)


def _check(solver: Solver, grid: Grid | Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for right, expected, got in (
        (isinstance(solver, Solver), "solver to be one of solvers, as DPMSolver(2)", solver),
        (callable(grid) or isinstance(grid, Tensor), "grid to be one of grids, as grids.log_snr with steps=20", grid),
        (isinstance(shape, Sequence) and len(shape) > 1, "shape to be (B, *D), as (64, 3, 32, 32)", shape),
        (dtype.is_floating_point, "dtype to be of floating-point numbers, as torch.float32", dtype),
    ):
        if not right:
            raise ValueError(f"expected {expected}, got {shown(got)}")
