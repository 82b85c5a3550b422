"""How right is each posterior sampler? Against exact posteriors of mixtures, at equal cost.

    python -m scorefield.benchmarks.posterior [--problems ring2 mask16 ...] [--methods twisted mmps ...]
                                              [--budgets 100 500 2000] [--count 150] [--write docs/control.md]

The denoisers are exact, so that what is measured is the method alone. Each problem has three measurements, and the
numbers are their means. "distance" is the sliced Wasserstein distance to exact samples in the posterior's standard
deviations. "wrong" is the mass in wrong modes, and "spread" the standard deviation where 1 is right. "cost" counts
evaluations of the denoiser for a sample, with all its particles; a vector-Jacobian product counts one. "log p(y)" is
the error of the evidence in nats by all runs together, and "of one run" the deviation of a run's.

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
from scorefield.solvers import (
    DAPS,
    DDIM,
    DDRM,
    PerSampleNoise,
    RePaint,
    Solver,
    SplitGibbs,
    Twisted,
    UniPC,
    grids,
)

SDE = VPSDE(t_min=1e-3)
BUDGETS = (100, 500, 2000)
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
Wrap = Callable[[DenoiserLike, Problem, PosteriorVariance], InverseProblem]


def of(kind: Callable[..., InverseProblem], **settings: float) -> Wrap:
    return lambda prior, problem, _: kind(prior, problem.measurement, problem.noise_std, **settings)


def with_std(kind: Callable[..., InverseProblem]) -> Wrap:
    return lambda prior, problem, _: kind(prior, problem.measurement, problem.noise_std, data_std=problem.std)


def measured(kind: Callable[..., InverseProblem], factor: float = 1.0) -> Wrap:
    return lambda prior, problem, variance: kind(
        prior, problem.measurement, problem.noise_std, data_std=variance.times(factor)
    )


METHODS: dict[str, tuple[Wrap, Solver]] = {
    "twisted, 20 particles": (measured(JacobianFree, 2.0), Twisted(20)),
    "twisted, 20 particles, order 1": (measured(JacobianFree, 2.0), Twisted(20, order=1)),
    "twisted, 20 particles by pigdm": (measured(PiGDM, 2.0), Twisted(20)),
    "twisted, 8 particles": (measured(JacobianFree, 2.0), Twisted(8)),
    "mmps, exact solve": (of(MMPS, iterations=16), STOCHASTIC),
    "mmps, 3 iterations": (of(MMPS, iterations=3), STOCHASTIC),
    "mmps, 1 iteration": (of(MMPS, iterations=1), STOCHASTIC),
    "mmps, 3 iterations, UniPC": (of(MMPS, iterations=3), UniPC(2)),
    "pigdm, std of the data": (with_std(PiGDM), STOCHASTIC),
    "pigdm, measured variance": (measured(PiGDM), STOCHASTIC),
    "dps, scale 0.3": (of(DPS, scale=0.3), STOCHASTIC),
    "dps, formula": (of(DPS), STOCHASTIC),
    "tmpd": (of(TMPD), STOCHASTIC),
    "jacobian_free": (with_std(JacobianFree), STOCHASTIC),
    "diffpir": (of(DiffPIR), STOCHASTIC),
    "ddnm": (of(DDNM), STOCHASTIC),
    "ddrm": (of(InverseProblem), DDRM()),
    "daps, 1 step": (of(InverseProblem), DAPS(1)),
    "daps, 5 steps": (of(InverseProblem), DAPS(5)),
    "split_gibbs": (of(InverseProblem), SplitGibbs()),
    "repaint": (of(InverseProblem), RePaint(jump=1, times=5)),
    "replacement": (of(InverseProblem), RePaint(times=1)),
}


def steps_within(name: str, problem: Problem, variance: PosteriorVariance, budget: int) -> int:
    """The steps that cost about so many evaluations a sample, by trials of 4 and 8 steps."""
    y = torch.zeros(1, problem.measurement.size).double()
    costs = [run(name, problem, variance, steps, y)[1] for steps in (4, 8)]
    return max(2, 4 + round(4 * (budget - costs[0]) / (costs[1] - costs[0])))


def measure(name: str, problem: Problem, variance: PosteriorVariance, budget: int, count: int) -> dict[str, float]:
    """A row: the means over the measurements."""
    generator = torch.Generator().manual_seed(100)
    x0 = problem.prior.sample(MEASUREMENTS, generator)
    y = problem.measurement(x0)
    y = y + problem.noise_std * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    if name == "exact samples":
        found, cost, evidence = None, 0.0, None
    else:
        steps = steps_within(name, problem, variance, budget)
        found, cost, evidence = run(name, problem, variance, steps, y.repeat_interleave(count, 0))
    rows = []
    for number in range(MEASUREMENTS):
        posterior, exact = problem.prior.posterior(problem.measurement.matrix(), y[number], problem.noise_std)
        own = slice(number * count, (number + 1) * count)
        x = posterior.sample(count, generator) if found is None else found[own]
        rows.append(compare(x, posterior, posterior.sample(EXACT, generator)))
        if evidence is not None:
            rows[-1] |= {
                "evidence": abs(float(evidence[own].exp().mean().log() - exact)),
                "deviation": float(evidence[own].std()),
            }
    return {"cost": cost} | {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def compare(x: Tensor, posterior: GaussianMixture, exact: Tensor) -> dict[str, float]:
    """Samples of a method against exact ones. One that diverges is measured on what is left, and says how much."""
    finite = x.isfinite().all(1)
    shares = [mode_masses(posterior.responsibilities(each)) for each in (x[finite], exact)]
    return {
        "distance": sliced_wasserstein(x[finite], exact),
        "wrong": total_variation(*shares),
        "spread": whitened_std(x[finite], exact),
        "lost": 1 - float(finite.double().mean()),
    }


def run(
    name: str, problem: Problem, variance: PosteriorVariance, steps: int, y: Tensor
) -> tuple[Tensor, float, Tensor | None]:
    """A sample for each y (B, m), evaluations for each with all its particles, and their log p(y), (B,)."""
    counted = CountCalls(problem.prior)
    wrap, solver = METHODS[name]
    denoiser = wrap(counted, problem, variance)
    if isinstance(denoiser, DPS):
        denoiser.log_snr_step = float(SDE.log_snr(SDE.t_min) - SDE.log_snr(SDE.t_max)) / steps
    noise = PerSampleNoise(0, range(len(y)))
    x = SDE.prior((len(y), *problem.measurement.shape), noise=noise, dtype=torch.float64)
    cond, ts = {"y": y}, grids.soft_clipped(SDE, steps)
    evidence = None
    with torch.no_grad():
        if isinstance(solver, Twisted):
            particles = solver.sample_particles(denoiser, SDE, x, ts, cond=cond, noise=noise)
            x, evidence = particles.draw(noise.uniform(y.new_empty(len(y)))), particles.log_evidence
        else:
            x = solver(denoiser, SDE, x, ts, cond=cond, noise=noise)
            x = x if solver.returns_x0 else denoiser(x, *SDE.scales(float(ts[-1])), **cond)
    return x, (counted.samples + counted.vjps) / len(y), evidence


def table(args: argparse.Namespace) -> list[str]:
    """The lines of the table, printed as they come."""
    named = [name for name in METHODS if not args.methods or any(name.startswith(each) for each in args.methods)]
    lines = ["| problem | method | cost | distance | wrong | spread | log p(y) | of one run |", "|" + "---|" * 8]
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
            evidence = f"{row['evidence']:.2f} | {row['deviation']:.2f}" if "evidence" in row else " | "
            lines.append(
                f"| {kind} | {name} | {row['cost']:.0f} | {row['distance']:.3f}{lost} | {row['wrong']:.3f} | "
                f"{row['spread']:.2f} | {evidence} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["ring2", "mask16", "lin16"], choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=[], help="beginnings of their names")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--count", type=int, default=150, help="samples for each measurement")
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
