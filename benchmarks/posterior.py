"""How right is each posterior sampler? Against exact posteriors of mixtures, at equal cost.

    python -m scorefield.benchmarks.posterior [--problems ring2 mask16 ...] [--methods twisted mmps ...]
                                              [--budgets 40 100 400] [--count 300] [--write docs/control.md]

The denoisers are exact, so that what is measured is the method alone. Each problem has three measurements, and the
numbers are their means. "distance" is the sliced Wasserstein distance to exact samples in the posterior's standard
deviations. "wrong" is the mass in wrong modes, and "spread" the standard deviation where 1 is right. "log p(y)" is the
error of the evidence in nats. "cost" counts evaluations of the denoiser for a sample, or for a particle; a
vector-Jacobian product counts one.

The problems were drawn by seeds that no default was chosen on.
"""

import argparse
import itertools
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from scorefield.evaluation.posterior import mode_masses, sliced_wasserstein, total_variation, whitened_std
from scorefield.models import CountCalls
from scorefield.models.analytic import GaussianMixture
from scorefield.models.guidance import (
    DDNM,
    DPS,
    MMPS,
    TMPD,
    DiffPIR,
    InverseProblem,
    JacobianFree,
    PiGDM,
    PosteriorVariance,
)
from scorefield.models.measurements import Linear, Mask, Matrix
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import DDIM, PerSampleNoise, Solver, Twisted, UniPC, grids
from scorefield.solvers.restoration import DAPS, DDRM, RePaint, SplitGibbs

SDE = VPSDE(t_min=1e-3)
BUDGETS = (40, 100, 400)
SEED, MEASUREMENTS, EXACT = 4001, 3, 4000
MARKS = ("<!-- posterior table -->", "<!-- end of the posterior table -->")


@dataclass(frozen=True)
class Problem:
    """A mixture, and what is measured of it."""

    prior: GaussianMixture
    measurement: Linear
    noise_std: float

    @property
    def std(self) -> float:
        """Of the data in a dimension."""
        weights, means = self.prior.weights[:, None], self.prior.means
        within = (weights * self.prior.stds.square()).sum() / means.shape[1]
        between = (weights * (means - (weights * means).sum(0)).square()).sum() / means.shape[1]
        return math.sqrt(float(within + between))


def ring() -> Problem:
    """Eight modes around a circle, longer along it; one number is measured, across the modes."""
    angle = torch.arange(8).double() * math.pi / 4
    out, along = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
    covariances = 0.1**2 * out[:, :, None] * out[:, None] + 0.35**2 * along[:, :, None] * along[:, None]
    prior = GaussianMixture(1.5 * out, None, torch.ones(8).double(), covariances=covariances)
    return Problem(prior, Matrix(torch.tensor([[1.0, 0.3]]).double(), (2,)), 0.2)


def sixteen(masked: bool, std: float, least: float, noise_std: float, seed: int) -> Problem:
    """Eight modes in 16 dimensions with covariances of their own; half of the values, or 6 sums, are measured."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = draw(8, 16, 16) / 4
    covariances = std**2 * ((1 - least) * root @ root.mT + least * torch.eye(16).double())
    prior = GaussianMixture(draw(8, 16), None, torch.ones(8).double(), covariances=covariances)
    if not masked:
        return Problem(prior, Matrix(draw(6, 16) / 4, (16,)), noise_std)
    known = torch.zeros(16, dtype=torch.bool)
    known[torch.randperm(16, generator=generator)[:8]] = True
    return Problem(prior, Mask(known, (16,)), noise_std)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ring2": ring,
    "mask16": lambda: sixteen(True, 0.35, 0.5, 0.2, SEED),
    "lin16": lambda: sixteen(False, 0.35, 0.5, 0.2, SEED + 1),
    "narrow16": lambda: sixteen(True, 0.25, 0.04, 0.1, SEED + 2),  # modes of very unequal axes, and less noise
}

STOCHASTIC = DDIM(1.0)
Made = tuple[InverseProblem, Solver, int]  # the denoiser, its solver, and the number of steps


def twisted(
    particles: int, kind: type[PiGDM] | type[JacobianFree] = JacobianFree, cost: int = 1, order: int = 1
) -> Callable[[DenoiserLike, Problem, PosteriorVariance, int], Made]:
    def made(prior: DenoiserLike, problem: Problem, variance: PosteriorVariance, budget: int) -> Made:
        guided = kind(prior, problem.measurement, problem.noise_std, variance.times(2.0))
        return guided, Twisted(particles, order=order), budget // cost

    return made


def guided(
    wrap: Callable[[DenoiserLike, Problem, PosteriorVariance], InverseProblem], cost: float, solver: Solver = STOCHASTIC
) -> Callable[[DenoiserLike, Problem, PosteriorVariance, int], Made]:  # fmt: skip
    return lambda prior, problem, variance, budget: (
        wrap(prior, problem, variance), solver, max(2, int(budget / cost)),
    )  # fmt: skip


def plain(prior: DenoiserLike, problem: Problem, _: PosteriorVariance) -> InverseProblem:
    return InverseProblem(prior, problem.measurement, problem.noise_std)


def of(kind: Callable[..., InverseProblem], **settings: float) -> Callable[..., InverseProblem]:
    return lambda prior, problem, _: kind(prior, problem.measurement, problem.noise_std, **settings)


def with_std(kind: Callable[..., InverseProblem], **settings: float) -> Callable[..., InverseProblem]:
    return lambda prior, problem, _: kind(
        prior, problem.measurement, problem.noise_std, data_std=problem.std, **settings
    )


METHODS = {
    "twisted, 20 particles": twisted(20),
    "twisted, 20 particles, order 2": twisted(20, order=2),
    "twisted, 8 particles": twisted(8),
    "twisted, 20 particles by pigdm": twisted(20, PiGDM, 2),
    "mmps, exact solve": guided(of(MMPS, iterations=16), 5.0),
    "mmps, 3 iterations": guided(of(MMPS, iterations=3), 5.0),
    "mmps, 1 iteration": guided(of(MMPS, iterations=1), 3.0),
    "mmps, 3 iterations, UniPC": guided(of(MMPS, iterations=3), 5.0, UniPC(2)),
    "pigdm, std of the data": guided(with_std(PiGDM), 2.0),
    "pigdm, measured variance": guided(
        lambda prior, problem, variance: PiGDM(prior, problem.measurement, problem.noise_std, variance), 2.0
    ),
    "dps, scale 0.3": guided(of(DPS, scale=0.3), 2.0),
    "dps, formula": guided(of(DPS), 2.0),
    "tmpd": guided(of(TMPD), 3.0),
    "jacobian_free": guided(with_std(JacobianFree), 1.0),
    "diffpir": guided(of(DiffPIR), 1.0),
    "ddnm": guided(of(DDNM), 1.0),
    "ddrm": guided(plain, 1.0, DDRM()),
    "daps, 1 step": guided(plain, 1.0, DAPS(1)),
    "daps, 5 steps": guided(plain, 5.0, DAPS(5)),
    "split_gibbs": guided(plain, 10.0, SplitGibbs()),
    "repaint": guided(plain, 5.0, RePaint(jump=5, times=5)),
    "replacement": guided(plain, 1.0, RePaint(times=1)),
}


def measure(name: str, problem: Problem, variance: PosteriorVariance, budget: int, count: int) -> dict[str, float]:
    """A row: the means over the measurements."""
    rows = []
    for number in range(MEASUREMENTS):
        generator = torch.Generator().manual_seed(100 + number)
        x0 = problem.prior.sample(1, generator)
        y = problem.measurement(x0)
        y = y + problem.noise_std * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        posterior, log_evidence = problem.prior.posterior(problem.measurement.matrix(), y[0], problem.noise_std)
        exact = posterior.sample(EXACT, generator)
        if name == "exact samples":
            x, extra = posterior.sample(count, generator), {}
        else:
            x, extra = drawn(name, problem, variance, budget, count, y, number, float(log_evidence))
        finite = x.isfinite().all(1)  # a method that diverges is measured on what is left, and says how much
        shares = [mode_masses(posterior.responsibilities(each)) for each in (x[finite], exact)]
        rows.append(
            {
                "distance": sliced_wasserstein(x[finite], exact),
                "wrong": total_variation(*shares),
                "spread": whitened_std(x[finite], exact),
                "lost": 1 - float(finite.double().mean()),
                **extra,
            }
        )
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def drawn(
    name: str, problem: Problem, variance: PosteriorVariance, budget: int, count: int, y: Tensor, number: int,
    log_evidence: float,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Samples (count, d) of a method, with its cost, and the error of its evidence."""
    counted = CountCalls(problem.prior)
    denoiser, solver, steps = METHODS[name](counted, problem, variance, budget)
    noise = PerSampleNoise(number, range(count))
    x = SDE.prior((count, *problem.measurement.shape), noise=noise, dtype=torch.float64)
    cond, ts = {"y": y.expand(count, -1)}, grids.soft_clipped(SDE, steps)
    with torch.no_grad():
        if not isinstance(solver, Twisted):
            x = solver(denoiser, SDE, x, ts, cond=cond, noise=noise)
            if not solver.returns_x0:
                x = denoiser(x, *SDE.scales(float(ts[-1])), **cond)
            return x, {"cost": (counted.samples + counted.vjps) / count}
        particles = solver.sample_particles(denoiser, SDE, x, ts, cond=cond, noise=noise)
    cost = (counted.samples + counted.vjps) / count / solver.particles
    error = abs(float(particles.log_evidence.exp().mean().log()) - log_evidence)
    return particles.draw(noise.uniform(y.new_empty(count))), {"cost": cost, "evidence": error}


def table(args: argparse.Namespace) -> list[str]:
    """The lines of the table, printed as they come."""
    named = [name for name in METHODS if not args.methods or any(name.startswith(each) for each in args.methods)]
    lines = ["| problem | method | budget | cost | distance | wrong | spread | log p(y) |", "|" + "---|" * 8]
    print("\n".join(lines))
    for kind in args.problems:
        problem = PROBLEMS[kind]()
        x0 = problem.prior.sample(512, torch.Generator().manual_seed(0))
        variance = PosteriorVariance.measure(problem.prior, SDE, x0, noise=PerSampleNoise(0, range(512)))
        for name, budget in [("exact samples", 0), *itertools.product(named, args.budgets)]:
            if name in ("repaint", "replacement") and not isinstance(problem.measurement, Mask):
                continue
            row = measure(name, problem, variance, budget, args.count)
            lost = f" ({row['lost']:.0%} not finite)" if row["lost"] else ""
            evidence = f"{row['evidence']:.2f}" if "evidence" in row else ""
            lines.append(
                f"| {kind} | {name} | {budget or ''} | {row.get('cost', 0):.0f} | {row['distance']:.3f}{lost} | "
                f"{row['wrong']:.3f} | {row['spread']:.2f} | {evidence} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=[], help="beginnings of their names")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--count", type=int, default=300, help="samples for each measurement")
    parser.add_argument("--write", type=Path, help="page whose table is replaced, between its two marks")
    args = parser.parse_args()
    began = time.perf_counter()
    lines = table(args)
    minutes = (time.perf_counter() - began) / 60
    said = (
        f"{date.today()}, {args.count} samples for each of {MEASUREMENTS} measurements, torch {torch.__version__}, "
        f"{torch.get_num_threads()} of {os.cpu_count()} threads, {minutes:.1f} minutes."
    )
    print(f"\n{said}")
    if args.write is not None:
        start, end = (re.escape(mark) for mark in MARKS)
        text = "\n".join([MARKS[0], "", *lines, "", said, MARKS[1]])
        page, found = re.subn(f"{start}.*{end}", lambda _: text, args.write.read_text(), flags=re.DOTALL)
        if not found:
            raise SystemExit(f"expected {MARKS[0]} and {MARKS[1]} in {args.write}, found none: add them")
        args.write.write_text(page)


if __name__ == "__main__":
    main()
