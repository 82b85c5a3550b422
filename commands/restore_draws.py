"""Samples of the posteriors of measured images, in batches of bounded memory."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield import solvers
from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.generate import grid as grid_of
from scorefield.commands.generate import of_rows, prepared
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.restore_problem import OF_VARIANCE, Measured, rows_of
from scorefield.commands.run import Run, stored_tensor
from scorefield.configs import build
from scorefield.configs.methods import Facts, Method
from scorefield.likelihood import Certificate, certify
from scorefield.models import CountCalls
from scorefield.models.guidance import InverseProblem, PosteriorVariance
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import Solver, Twisted
from scorefield.solvers.noise import PerSampleNoise
from scorefield.solvers.solver import OnStep
from scorefield.solvers.twisted import Particles

MEASURED = 64  # images whose error is the variance of x0 given x


@dataclass(frozen=True)
class Draws:
    """Samples of N posteriors, S of each, and what they cost.

    Args:
        x: in the model's values, (N, S, *D), on the CPU.
        log_evidence: an estimate of log p(y) by each run of particles, (N, S), in nats; None for other methods.
        least_ess: the least effective sample size of these particles, (N, S).
        forwards: evaluations of the network for a sample, particles and vector-Jacobian products included.
        seconds: of all.
    """

    x: Tensor
    log_evidence: Tensor | None
    least_ess: Tensor | None
    forwards: float
    seconds: float


def draw(
    denoiser: DenoiserLike,
    problem: Measured,
    method: Method,
    *,
    grid: str,
    steps: int,
    samples: int,
    seed: int = 0,
    batch: int = 64,
    solver: str | None = None,
    variance: PosteriorVariance | None = None,
    name: str = "restore",
) -> Draws:
    """Draw samples of each posterior. Sample s of image i has stream  i S + s  of the seed.

    Args:
        denoiser: E[x0 | x] of the run.
        problem: the measurements.
        method: how.
        grid: spec of the times.
        steps: of the grid.
        samples: S.
        seed: of the noise.
        batch: states in the network at once, with their particles; it changes memory alone.
        solver: in the place of the method's own.
        variance: of x0 given x, see `measured_variance`.
        name: what the progress is called.

    Raises:
        ValueError: for a method that cannot take the measurement, or values that are not finite.
    """
    run, counted = problem.run, CountCalls(denoiser)
    ts, bound = _bound(counted, problem, method, grid, steps, variance)
    by = method.solved_by(None if solver is None else build.build(build.SOLVERS, solver))
    total, began = len(problem.y) * samples, time.perf_counter()
    xs, evidences, leasts = list[Tensor](), list[Tensor](), list[Tensor]()
    size = max(1, batch // by.particles) if isinstance(by, Twisted) else batch
    with progress_bar(name, total) as bar:
        for first in range(0, total, size):
            rows = range(first, min(first + size, total))
            images = torch.tensor(rows) // samples
            cond = prepared(denoiser, rows_of(problem.given.cond, images, run.device), run.shape)
            cond["y"] = problem.y[images].to(run.device)
            x, found = _part(run, bound, by, ts, cond, seed, rows, bar.steps(len(rows)))
            xs.append(x.cpu())
            if found is not None:
                evidences.append(found.log_evidence.cpu())
                leasts.append(found.least_ess.cpu())
    x = torch.cat(xs)
    if not bool(x.isfinite().all()):
        raise ValueError(f"{by} gave values that are not finite: use more --steps, or another --method")
    least = torch.cat(leasts).reshape(-1, samples) if leasts else None
    # Without noise the potentials lack their normaliser, and there is no evidence.
    with_evidence = bool(evidences) and problem.noise_std > 0
    log_evidence = torch.cat(evidences).reshape(-1, samples) if with_evidence else None
    cost = (counted.samples + counted.vjps) / total
    shaped = x.reshape(-1, samples, *x.shape[1:])
    return Draws(shaped, log_evidence, least, cost, time.perf_counter() - began)


def certified(
    denoiser: DenoiserLike,
    problem: Measured,
    method: Method,
    *,
    grid: str,
    steps: int,
    samples: int,
    seed: int = 0,
    batch: int = 64,
    variance: PosteriorVariance | None = None,
) -> tuple[Draws, Tensor]:
    """Draws of the flow that a method guides, and their exact log weights (N, S); see `likelihood.certify`.

    Raises:
        ValueError: for a method that guides no flow, more than 300 dimensions, or no noise.
    """
    if method.own_run:
        raise ValueError(
            f"expected a method that guides a flow beside --certify, got one with a run of its own, "
            f"{type(method.solver).__name__}: give --method=mmps or --method=pigdm"
        )
    run, counted = problem.run, CountCalls(denoiser)
    ts, bound = _bound(counted, problem, method, grid, steps, variance)
    began, size, found = time.perf_counter(), max(1, batch // samples), list[Certificate]()
    with progress_bar("certify", len(problem.y) * samples) as bar:
        for first in range(0, len(problem.y), size):
            images = torch.arange(first, min(first + size, len(problem.y)))
            cond = prepared(denoiser, rows_of(problem.given.cond, images, run.device), run.shape)
            cond["y"] = problem.y[images].to(run.device)
            noise = PerSampleNoise(seed, images.tolist())
            on_step = bar.steps(len(images) * samples)
            found.append(certify(bound, run.sde, ts, cond=cond, draws=samples, noise=noise, on_step=on_step))
    x, log_weights = (torch.cat([getattr(each, name).cpu() for each in found]) for name in ("x", "log_weights"))
    evidence = torch.cat([each.log_evidence.cpu() for each in found])[:, None]
    cost = (counted.samples + counted.vjps) / (len(problem.y) * samples)
    return Draws(x, evidence, None, cost, time.perf_counter() - began), log_weights


def _bound(
    denoiser: DenoiserLike,
    problem: Measured,
    method: Method,
    grid: str,
    steps: int,
    variance: PosteriorVariance | None,
) -> tuple[Tensor, InverseProblem]:
    """The falling times, and the denoiser with the measurement."""
    run = problem.run
    ts = grid_of(run, {"grid": grid, "steps": steps})
    along = run.sde.log_snr(ts[[0, -1]].double())
    ranged = run.autoencoder is None and run.data.levels is not None
    facts = Facts(
        data_std(run),
        variance if method.uses_variance else None,
        (run.low, run.high) if ranged else None,
        float((along[1] - along[0]).abs()) / (len(ts) - 1),
    )
    return ts, method.problem(denoiser, problem.of_model, problem.noise_std, facts)


def data_std(run: Run) -> float:
    """Standard deviation of the model's values in a dimension. Codes have 1.

    Old and imported runs do not know it: it is taken as a quarter of the range of images, and 1 for continuous values.
    """
    if run.autoencoder is not None or (run.data.std is None and run.data.levels is None):
        return 1.0
    if run.data.std is None:
        return (run.high - run.low) / 4
    unit = 1.0 if run.data.levels is None else (run.high - run.low) / run.data.levels
    return unit * run.data.std or 1.0


def measured_variance(run: Run, denoiser: DenoiserLike) -> PosteriorVariance | None:
    """The denoiser's own error by noise level on 64 images of the run; None where its data is not there."""
    try:
        data = run.dataset("train").subset(MEASURED, 0)
        given = data_conditioning(run, data)
    except (OSError, ValueError):
        return None
    x0 = run.centred(stored_tensor(data)).to(run.device)
    cond = prepared(denoiser, of_rows(given.cond, run.device), run.shape)
    noise = PerSampleNoise(0, range(len(x0)), (OF_VARIANCE,))
    return PosteriorVariance.measure(denoiser, run.sde, x0, noise=noise, cond=cond)


def _part(
    run: Run,
    bound: InverseProblem,
    solver: Solver,
    ts: Tensor,
    cond: dict[str, Any],
    seed: int,
    rows: range,
    on_step: OnStep,
) -> tuple[Tensor, Particles | None]:
    """Samples of some rows, (B, *D), and where there are particles all of them."""
    shape = (len(rows), *run.shape)
    if not isinstance(solver, Twisted):
        return solvers.sample(
            bound, run.sde, shape, solver=solver, grid=ts, cond=cond, seed=seed, first=rows.start, device=run.device,
            on_step=on_step,
        ), None  # fmt: skip
    noise = PerSampleNoise(seed, rows)
    x = run.sde.prior(shape, noise=noise, dtype=torch.float32, device=run.device)
    found = solver.sample_particles(bound, run.sde, x, ts, cond=cond, noise=noise, on_step=on_step)
    return found.draw(noise.uniform(x.new_empty(len(rows), 1))[:, 0]), found
