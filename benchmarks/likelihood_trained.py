"""Likelihoods of trained networks: errors of the solver, cost of an evaluation, variance of the probes, work.

The reference takes many steps with the same constant probes. `benchmarks.likelihood` prints the tables.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.benchmarks.likelihood_mixtures import Slope, by_recipe, rms
from scorefield.benchmarks.run import interleaved
from scorefield.commands.run import stored_tensor
from scorefield.commands.trained import open_trained
from scorefield.likelihood import (
    Dequantisation,
    Hutchinson,
    HutchPlusPlus,
    Plan,
    TruncatedNormal,
    Uniform,
    choose_solver,
    log_likelihood,
    mean_and_error,
)
from scorefield.likelihood.divergence import Divergence
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.likelihood.plan import grid_of
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers import (
    AdamsMoulton,
    PerSampleNoise,
    Scales,
    probability_flow,
)
from scorefield.solvers.ode.flow import ALL
from scorefield.solvers.variables import SoftClippedLogSNR

CONSTANT_PROBES = Hutchinson(fresh=False)
MAX_PROBE_NFE = 103  # of the plan whose probes are compared
MAX_STEPS = 200  # of a plan


class Pass(NamedTuple):
    """One scoring of the images: nats (B,), evaluations of one, and the processor's seconds."""

    log_prob: Tensor
    nfe: float
    seconds: float


class Part(NamedTuple):
    """The settings of the tables for one run."""

    workdir: Path | None
    dequantisation: Dequantisation
    images: int  # to score, and the same number for the choice of a solver
    evaluations: tuple[int, ...]
    fine: int  # steps of the reference
    coarse: int | None  # evaluations with which probes of every kind are compared


class Case:
    """A trained network, images (B, *D) to score with their log_q (B,), and others for the choice of a solver."""

    def __init__(self, workdir: Path, dequantisation: Dequantisation, count: int, trials: int) -> None:
        trained = open_trained(workdir, "cpu")
        self.run, self.denoiser, self.sde = trained.run, trained.denoiser, trained.run.sde
        self.stored = stored_tensor(self.run.dataset("test"))[: count + trials]
        x, log_q = self.drawn(dequantisation)
        self.x, self.log_q, self.tries, self.dims = x[:count], log_q[:count], x[count:], x[0].numel()

    def drawn(self, dequantisation: Dequantisation) -> tuple[Tensor, Tensor]:
        assert self.run.data.levels is not None
        uniform = PerSampleNoise(0, range(len(self.stored))).uniform
        return dequantisation(
            self.stored, self.run.data.levels, self.sde, uniform, low=self.run.low, high=self.run.high
        )

    def noise(self, seed: int, x: Tensor | None = None) -> PerSampleNoise:
        # Not the streams that the draw is from: a probe that knows the noise in x sees another divergence.
        return PerSampleNoise(10_000 + seed, range(len(self.x if x is None else x)))

    def ours(self, plan: Plan, divergence: Divergence, seed: int = 0, x: Tensor | None = None) -> Pass:
        start = time.process_time()
        density = log_likelihood(
            self.denoiser, self.sde, self.x if x is None else x, divergence=divergence, solver=plan.solver, ts=plan.ts,
            noise=self.noise(seed, x),
        )  # fmt: skip
        return Pass(density.log_prob.double(), density.nfe, time.process_time() - start)

    def theirs(self, tolerance: float, seed: int = 0) -> Pass:
        start = time.process_time()
        slope, times = self.recipe(Hutchinson().directions(self.x, self.noise(seed))[0]), list[float]()

        def counted(at: Scales, x: Tensor) -> tuple[Tensor, Tensor]:
            times.append(float(at.t))
            return slope(at, x)

        latent, change = by_recipe(counted, self.sde, self.x, tolerance)
        return Pass(self.sde.prior_log_prob(latent).double() + change, len(times), time.process_time() - start)

    def recipe(self, probe: Tensor) -> Slope:
        """The flow, and then again, with a graph, for its product with the probe."""

        def slope(at: Scales, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                velocity = probability_flow(self.denoiser, x, at)
            y = x.detach().requires_grad_()
            (product,) = torch.autograd.grad((probability_flow(self.denoiser, y, at) * probe).sum(), y)
            return velocity, (product * probe).flatten(1).sum(1)

        return slope

    def bits(self, nats: Tensor) -> Tensor:
        return nats / (self.dims * math.log(2))

    def with_steps(self, plan: Plan, evaluations: int, solver: AdamsMoulton | None = None) -> Plan:
        solver = solver or plan.solver
        return replace(plan, solver=solver, ts=grid_of(solver, self.sde, evaluations - 3))


def nfe_of(plan: Plan) -> int:
    """Evaluations of a sample that is not refined."""
    return plan.solver.evaluations(plan.steps)


def solver_table(case: Case, evaluations: Sequence[int], fine: int) -> tuple[Plan, dict[str, tuple[Pass, Tensor]]]:
    """Errors against many steps with the same kept probe; the plan for 1e-3, and passes with their errors."""
    noise, start = PerSampleNoise(20_000, range(len(case.tries))), time.process_time()
    plans = {
        tolerance: choose_solver(case.denoiser, case.sde, case.tries, tolerance, noise=noise, max_steps=MAX_STEPS)
        for tolerance in (1e-2, 1e-3)
    }
    chose = time.process_time() - start
    variable, plan = SoftClippedLogSNR(0.002, 30.0, spread=0.8), plans[1e-3]
    reference = case.ours(case.with_steps(plan, fine + 3, AdamsMoulton(4, variable)), CONSTANT_PROBES)
    passes = dict[str, Pass]()
    for n in evaluations:
        passes[f"in {n}"] = case.ours(case.with_steps(plan, n), CONSTANT_PROBES)
    for tolerance, plan in plans.items():
        said = f"{'met' if plan.met else 'NOT met'} in the trials, {plan.trial_nfe} evaluations to choose"
        passes[f"choose_solver {tolerance:.0e}: {said}"] = case.ours(plan, CONSTANT_PROBES)
    passes["recipe, RK45 at 1e-5"], passes["recipe, RK45 at 1e-3"] = case.theirs(1e-5), case.theirs(1e-3)
    passes["half the reference's steps"] = case.ours(
        case.with_steps(plan, fine // 2 + 3, AdamsMoulton(4, variable)), CONSTANT_PROBES
    )
    print(f"\n### Solver error of {len(case.x)} images; reference {fine} steps; both plans took {chose:.0f} s\n")
    print("| | evaluations | rms | mean | max | s |\n|---|---|---|---|---|---|")
    out = {}
    for name, got in passes.items():
        error = case.bits(got.log_prob - reference.log_prob)
        out[name] = got, error
        print(f"| {name} | {got.nfe:.0f} | {rms(error):.1e} | {error.mean():+.1e} | {error.abs().max():.1e} |", end="")
        print(f" {got.seconds:.1f} |", flush=True)
    return plan, out


def cost_table(case: Case) -> tuple[float, float]:
    """An evaluation in forwards: ours and the recipe's."""
    at, hutchinson = Scales.at(case.sde, torch.tensor(0.5, dtype=torch.float64)), Hutchinson()
    flow = FlowWithDivergence(BoundDenoiser(case.denoiser, None, len(case.x)), hutchinson, True, case.noise(0))
    state, probe = flow.begin(case.x), hutchinson.directions(case.x, case.noise(0))[0]

    def forward() -> Tensor:
        with torch.no_grad():
            denoised: Tensor = case.denoiser(case.x, at.alpha, at.sigma)
            return denoised

    recipe = case.recipe(probe)
    ours, theirs = interleaved(lambda: flow(at, state, ALL), forward), interleaved(lambda: recipe(at, case.x), forward)
    print(f"\n### An evaluation of {len(case.x)} images, in forwards ({1e3 * ours[1]:.0f} ms)\n\n| ours | recipe |")
    print(f"|---|---|\n| {ours[2]:.2f} | {theirs[2]:.2f} |", flush=True)
    return ours[2], theirs[2]


def probe_table(case: Case, plan: Plan, seeds: int, coarse: int | None) -> tuple[float, float]:
    """Mean variance of a value by its probes, fresh and kept; other probes on a coarse grid, if `coarse` is given."""
    x = case.x[:8]

    def values(divergence: Divergence, plan: Plan = plan) -> Tensor:
        return case.bits(torch.stack([case.ours(plan, divergence, 100 + i, x).log_prob for i in range(seeds)]))

    print(f"\n### Variance by the probes, {seeds} seeds, {len(x)} images\n")
    print("| probes | evaluations | standard deviation | variance x products, over fresh Rademacher's |")
    print("|---|---|---|---|")

    def row(name: str, products: int, of: Tensor, against: Tensor, nfe: int = nfe_of(plan)) -> float:
        ratio, error = (products * each for each in ratio_of_variances(of, against))
        shown = "1" if of is against else f"{ratio:.2f} +- {error:.2f}"
        print(f"| {name} | {nfe} | {of.var(0).mean().sqrt():.1e} | {shown} |", flush=True)
        return float(of.var(0).mean())

    fresh = values(Hutchinson())
    variances = row("fresh Rademacher", 1, fresh, fresh), row("kept Rademacher", 1, values(CONSTANT_PROBES), fresh)
    if coarse is not None:
        few = case.with_steps(plan, coarse)
        fresh = values(Hutchinson(), few)
        others: dict[str, tuple[int, Divergence]] = {
            "fresh gaussian": (1, Hutchinson(distribution="gaussian")),
            "fresh orthogonal, 3 products": (3, Hutchinson(3, "orthogonal")),
            "fresh Hutch++, 3 products": (3, HutchPlusPlus(1, 1)),
        }
        for name, (products, divergence) in others.items():
            row(name, products, values(divergence, few), fresh, coarse)
    return variances


def ratio_of_variances(of: Tensor, against: Tensor) -> tuple[float, float]:
    """Of values (seeds, images): the ratio of their images' mean variances, and its error by a bootstrap of both."""
    generator = torch.Generator().manual_seed(0)

    def ratio(images: Tensor, *seeds: Tensor) -> float:
        above, below = (v[rows][:, images].var(0).mean() for v, rows in zip((of, against), seeds, strict=True))
        return float(above / below)

    def resampled(count: int) -> Tensor:
        return torch.randint(count, (count,), generator=generator)

    ratios = [ratio(resampled(of.shape[1]), resampled(len(of)), resampled(len(against))) for _ in range(400)]
    all_images = ratio(*(torch.arange(count) for count in (of.shape[1], len(of), len(against))))
    return all_images, float(torch.tensor(ratios).std())


def work_table(costs: dict[str, tuple[Pass, float, float, float]], first: str) -> None:
    """Work to a standard error of one image, for (a pass, forwards an evaluation, rms solver error, probes' variance).

    A value is the mean of R passes: error^2 = variance / R + solver error^2.
    """
    _, _, error, variance = costs[first]
    print("\n### Work for an image to a standard error, solver's and probes' together\n")
    print("| standard error | how | passes | forwards | s a batch | times |\n|---|---|---|---|---|---|")
    for target in [math.sqrt(variance + error**2) * share for share in (1.0, 1 / 3)]:
        least = 0.0
        for name, (got, forwards, error, variance) in costs.items():
            spare = target**2 - error**2
            passes = math.ceil(variance / spare * (1 - 1e-9)) if spare > 0 else math.inf
            spent = passes * got.nfe * forwards
            least = least or spent
            print(f"| {target:.1e} | {name} | {passes} | {spent:,.0f} | {passes * got.seconds:,.0f} |", end="")
            print(f" {spent / least:.1f} |", flush=True)


def trained_tables(case: Case, evaluations: Sequence[int], fine: int, seeds: int, coarse: int | None) -> Plan:
    plan, passes = solver_table(case, evaluations, fine)
    forwards = cost_table(case)
    mine = next(name for name in passes if name.startswith("choose_solver 1e-03"))
    if nfe_of(plan) > MAX_PROBE_NFE:
        plan = case.with_steps(plan, MAX_PROBE_NFE)
        mine = next(name for name, (got, _) in passes.items() if got.nfe == MAX_PROBE_NFE)
    variances = probe_table(case, plan, seeds, coarse)
    costs = {}
    for name, which in zip((mine, *(name for name in passes if "recipe" in name)), (0, 1, 1), strict=True):
        got, error = passes[name]
        costs[f"{name.split(':')[0]}, {got.nfe:.0f} evaluations"] = got, forwards[which], rms(error), variances[which]
    work_table(costs, next(iter(costs)))
    return plan


def dequantisation_table(case: Case, plan: Plan) -> None:
    """Bits/dim of the images with noise in the cells drawn either way."""
    count, values = len(case.x), dict[str, Tensor]()
    for dequantisation in (Uniform(), TruncatedNormal()):
        x, log_q = (each[:count] for each in case.drawn(dequantisation))
        density = case.ours(plan, Hutchinson(), 7, x).log_prob
        values[str(dequantisation)] = case.bits(log_q - density)
    print("\n### Dequantisation\n\n| | bits/dim |\n|---|---|")
    values["difference"] = torch.sub(*values.values())
    for name, value in values.items():
        mean, error = mean_and_error(value)
        print(f"| {name} | {mean:.3f} +- {error:.3f} |", flush=True)
