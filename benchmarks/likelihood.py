"""What an evaluation buys a likelihood: ours beside the recipe of score_sde_pytorch, in one run.

python -m benchmarks.likelihood [--vp=WORKDIR] [--vdm=WORKDIR]      prints the tables; --quick for a smoke run

The recipe: scipy's RK45 with rtol = atol = 1e-5, in time from t_min to t_max, all images and their log-densities in one
float64 state; one Rademacher probe for the whole trajectory; at every evaluation the flow without a graph, then once
more with one for the product with the probe. Ours: `plan_for` and `AdamsMoulton` on the plan's grid, fresh probes.

Mixtures have their divergence, their prior at t_max and their log-density at t_min in closed form, and data drawn from
the marginal at t_min: what differs is the solver's. Trained networks have a reference in many steps, by the same kept
probes. One evaluation of ours is one forward and one product; errors and deviations are in bits/dim, of one image.
"""

import argparse
import itertools
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import scipy
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.run import interleaved
from benchmarks.solvers import image_like, isotropic
from commands.run import open_trained, stored_tensor
from likelihood import (
    Dequantisation,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    Plan,
    TruncatedNormal,
    Uniform,
    log_likelihood,
    mean_and_error,
    plan_for,
)
from likelihood.divergence import Divergence
from likelihood.flow import FlowWithDivergence
from likelihood.pilot import _Pilots
from models.analytic import GaussianMixture
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE
from solvers import AdamsMoulton, Adaptive, PerSampleNoise, Scales, Schedule, grids, probability_flow
from solvers.clocks import Saturated
from solvers.flow import ALL, Rows, State

PATHS: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(sigma_max=20.0),
    "edm": EDMSDE(),
    "cosine": CosineSDE(),
    "rectified": RectifiedSDE(),
}
PROBLEMS = ("d=2", "d=64", "d=3072", "image-like")
COLUMNS = (15, 25, 50)

Slope = Callable[[Scales, Tensor], tuple[Tensor, Tensor]]  # velocity and divergence at x


class Cell(NamedTuple):
    """Errors of images in bits/dim, and the evaluations they took."""

    errors: Tensor
    nfe: float

    def __str__(self) -> str:
        return f"{rms(self.errors):.1e} ({float(self.errors.mean()):+.1e})"


class Pass(NamedTuple):
    """One scoring of the images: nats (B,), evaluations of one, and the processor's seconds."""

    log_prob: Tensor
    nfe: float
    seconds: float


class MixtureFlow:
    """The flow of a mixture of normals with equal weights, for flat x (B, D), with its divergence in closed form.

        div v = D f - g^2 / 2 lap log p,    lap log p = sum_k r_k (|s_k|^2 - sum_d 1 / v_kd) - |sum_k r_k s_k|^2

    with s_k = -(x - alpha m_k) / v_k and v_k = alpha^2 std_k^2 + sigma^2, by matrix products. A field for solvers.
    """

    def __init__(self, means: Tensor, stds: Tensor) -> None:
        self.means, self.stds, self.calls = means, stds, 0

    def look(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log p (B,), its gradient (B, D) and its Laplacian (B,)."""
        precision, centre = 1 / ((alpha * self.stds).square() + sigma.square()), alpha * self.means
        squares, pulled = x.square(), centre * precision
        distance = squares @ precision.T - 2 * x @ pulled.T + (centre * pulled).sum(1)
        length = squares @ precision.square().T - 2 * x @ (pulled * precision).T + pulled.square().sum(1)
        logs = (precision.log().sum(1) - distance) / 2 - math.log(len(centre))
        responsibility = logs.softmax(1)
        score = responsibility @ pulled - x * (responsibility @ precision)
        laplacian = (responsibility * (length - precision.sum(1))).sum(1) - score.square().sum(1)
        return logs.logsumexp(1) - x.shape[1] / 2 * math.log(2 * math.pi), score, laplacian

    def log_prob(self, x: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
        return self.look(x, *scales)[0]

    def slope(self, at: Scales, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        _, score, laplacian = self.look(x, at.alpha, at.sigma)
        half = at.diffusion**2 / 2
        return at.drift * x - half * score, x.shape[1] * at.drift - half * laplacian

    def __call__(self, at: Scales, state: State, rows: Rows) -> State:
        velocity, divergence = self.slope(at, state[0])
        return velocity, divergence[:, None]


def mixture(name: str) -> MixtureFlow:
    means, stds, _ = image_like() if name == "image-like" else isotropic(int(name.removeprefix("d=")))
    return MixtureFlow(means, stds)


def drawn(flow: MixtureFlow, sde: SDE, count: int, seed: int) -> Tensor:
    """Points of the path at t_min."""
    generator = torch.Generator().manual_seed(seed)
    x0 = GaussianMixture(flow.means, flow.stds, torch.ones(len(flow.means))).sample(count, generator)
    alpha, sigma = sde.scales(sde.t_min)
    return alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)


def agrees() -> None:
    """The closed form against automatic differentiation, in d = 2."""
    flow, sde = mixture("d=2"), VPSDE()
    x, at = drawn(flow, sde, 5, 0), Scales.at(sde, torch.tensor(0.2))
    denoiser, exact = GaussianMixture(flow.means, flow.stds, torch.ones(10)), Exact()
    velocity, divergence = exact(lambda y: probability_flow(denoiser, y, at), x, exact.directions(x, torch.randn_like))
    for mine, theirs in zip(flow(at, (x,), slice(None)), (velocity, divergence), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)
    assert torch.allclose(flow.log_prob(x, (at.alpha, at.sigma)), denoiser.log_prob(x, at.alpha, at.sigma))


def by_recipe(slope: Slope, sde: SDE, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """Scipy's RK45 in time on the whole batch: latents, the divergences' integrals, and evaluations."""

    def flat(*parts: Tensor) -> Tensor:
        return torch.cat([part.flatten().double() for part in parts])

    def change(t: float, state: Tensor) -> Tensor:
        y = torch.as_tensor(state[: x.numel()]).reshape(x.shape).to(x)
        return flat(*slope(Scales.at(sde, torch.tensor(t, dtype=torch.float64)), y)).numpy()

    start = flat(x, torch.zeros(len(x))).numpy()
    found = solve_ivp(change, (sde.t_min, sde.t_max), start, rtol=tolerance, atol=tolerance, method="RK45")
    assert found.success
    end = torch.as_tensor(found.y[:, -1])
    return end[: x.numel()].reshape(x.shape).to(x), end[x.numel() :], found.nfev


class Choices:
    """The constants that pilots choose for a number of evaluations."""

    def __init__(self, pilots: _Pilots) -> None:
        self.pilots, self.record = pilots, pilots.recorded()

    def __call__(self, evaluations: int, most: int = 3) -> AdamsMoulton:
        steps = evaluations - 3
        leading = self.record.best(steps)[:most]
        return self.pilots.best(leading, steps)[0] if most > 1 else leading[0]


def analytic(name: str, sde: SDE, count: int) -> tuple[dict[str, Cell], dict[int, AdamsMoulton]]:
    """Errors by column, and the constants that were chosen."""
    flow, pilots = mixture(name), _Pilots(lambda *_: None, sde, drawn(mixture(name), sde, 16, 1), Exact(), torch.randn)
    x, dims = drawn(flow, sde, count, 2), flow.means.shape[1]
    pilots.flow, pilots.start = flow, (pilots.x, pilots.x.new_zeros(16, 1))  # the divergence is exact and known
    truth, cells, chosen = flow.log_prob(x, sde.scales(sde.t_min)), dict[str, Cell](), Choices(pilots)

    def against(latent: Tensor, change: Tensor) -> Cell:
        error = flow.log_prob(latent, sde.scales(sde.t_max)) + change - truth
        return Cell(error / (dims * math.log(2)), flow.calls)

    solvers = {evaluations: chosen(evaluations) for evaluations in COLUMNS}
    runs: dict[str, tuple[AdamsMoulton | Adaptive, Tensor]] = {}
    for evaluations, solver in solvers.items():
        runs[str(evaluations)] = solver, pilots.grid(solver, evaluations - 3)
    for tolerance in (1e-5, 1e-3):
        together = Adaptive("scipy:RK45", tolerance, tolerance, per_sample=False)
        runs[f"log-SNR {tolerance:.0e}"] = together, torch.tensor([sde.t_min, sde.t_max])
        flow.calls = 0
        latent, change, _ = by_recipe(flow.slope, sde, x, tolerance)
        cells[f"time {tolerance:.0e}"] = against(latent, change)
    for column, (solver, ts) in runs.items():
        flow.calls = 0
        latent, change = solver.integrate(flow, (x, x.new_zeros(count, 1)), Schedule(sde, ts, x))
        cells[column] = against(latent, change[:, 0])
    return cells, solvers


def analytic_tables(problems: Sequence[str], paths: Sequence[str], count: int) -> None:
    columns = [*map(str, COLUMNS), "time 1e-05", "time 1e-03", "log-SNR 1e-05", "log-SNR 1e-03"]
    print(f"\n## Mixtures, exact divergence and truth, {count} images: rms of the errors (mean), [evaluations]\n")
    heads = [f"{c} evaluations" if c.isdigit() else f"RK45 in {c}" for c in columns]
    print(f"| path | problem | {' | '.join(heads)} |\n|---|---|" + "---|" * len(columns))
    chosen: list[str] = []
    for path, name in itertools.product(paths, problems):
        cells, solvers = analytic(name, PATHS[path], count)
        shown = [str(cells[c]) + f" [{cells[c].nfe}]" * (not c.isdigit()) for c in columns]
        print(f"| {path} | {name} | {' | '.join(shown)} |", flush=True)
        chosen += [f"| {path} | {name} | {' | '.join(map(constants, solvers.values()))} |"]
    print(f"\nWhat the pilots chose: order; low, high; spread; pace\n\n| path | problem | {' | '.join(columns[:3])} |")
    print("|---|---|" + "---|" * len(COLUMNS) + "\n" + "\n".join(chosen))


def constants(solver: AdamsMoulton) -> str:
    clock = solver.clock
    assert isinstance(clock, Saturated)
    return f"{solver.order}; {clock.low:g}, {clock.high:g}; {clock.spread or 1:.2f}; {clock.pace:.0f}"


class Case:
    """A trained network, images (B, *D) to score, and others for pilots; `log_q` is of the draw, in nats, (B,)."""

    def __init__(self, workdir: Path, dequantisation: Dequantisation, count: int, pilots: int) -> None:
        trained = open_trained(workdir, "cpu")
        self.run, self.denoiser, self.sde = trained.run, trained.denoiser, trained.run.sde
        self.stored = stored_tensor(self.run.dataset("test"), count + pilots)
        x, log_q = self.drawn(dequantisation)
        self.x, self.log_q, self.tries, self.dims = x[:count], log_q[:count], x[count:], x[0].numel()

    def drawn(self, dequantisation: Dequantisation) -> tuple[Tensor, Tensor]:
        assert self.run.data.levels is not None
        uniform = PerSampleNoise(0, range(len(self.stored))).uniform
        return dequantisation(
            self.stored, self.run.data.levels, self.sde, uniform, low=self.run.low, high=self.run.high
        )

    def noise(self, seed: int) -> PerSampleNoise:
        return PerSampleNoise(seed, range(len(self.x)))

    def ours(self, plan: Plan, divergence: Divergence, seed: int = 0, x: Tensor | None = None) -> Pass:
        start = time.process_time()
        found = log_likelihood(
            self.denoiser, self.sde, self.x if x is None else x, divergence=divergence, solver=plan.solver, ts=plan.ts,
            noise=self.noise(seed),
        )  # fmt: skip
        return Pass(found.log_prob.double(), found.nfe, time.process_time() - start)

    def theirs(self, tolerance: float, seed: int = 0) -> Pass:
        start = time.process_time()
        slope = self.recipe(Hutchinson().directions(self.x, self.noise(seed))[0])
        latent, change, nfe = by_recipe(slope, self.sde, self.x, tolerance)
        return Pass(self.sde.prior_log_prob(latent).double() + change, nfe, time.process_time() - start)

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

    def with_steps(self, plan: Plan, evaluations: int) -> Plan:
        assert isinstance(plan.solver.clock, Saturated)
        return replace(plan, ts=grids.by_clock(self.sde, evaluations - 3, plan.solver.clock).flip(0))


def solver_table(case: Case, evaluations: Sequence[int], fine: int) -> tuple[Plan, dict[str, tuple[Pass, Tensor]]]:
    """Errors against many steps with the same kept probe; the plan for 1e-3, and passes with their errors."""
    kept = Hutchinson(fresh=False)
    start = time.process_time()
    plans = {
        tolerance: plan_for(case.denoiser, case.sde, case.tries, tolerance, noise=PerSampleNoise(9, range(99)))
        for tolerance in (1e-2, 1e-3)
    }
    chose = time.process_time() - start
    clock = Saturated(0.002, 30.0, spread=0.8)
    finest = replace(plans[1e-3], solver=AdamsMoulton(4, clock), ts=grids.by_clock(case.sde, fine, clock).flip(0))
    reference = case.ours(finest, kept)
    passes = {f"AdamsMoulton, {n}": case.ours(case.with_steps(plans[1e-3], n), kept) for n in evaluations}
    for tolerance, plan in plans.items():
        said = f"estimates {plan.error:.1e}, {'met' if plan.met else 'NOT met'}, {plan.spent} spent a pilot"
        passes[f"plan_for {tolerance:.0e}: {constants(plan.solver)}: {said}"] = case.ours(plan, kept)
    passes["recipe, RK45 at 1e-5"], passes["recipe, RK45 at 1e-3"] = case.theirs(1e-5), case.theirs(1e-3)
    passes["half the reference's steps"] = case.ours(case.with_steps(finest, fine // 2 + 3), kept)
    print(f"\n### Solver error of {len(case.x)} images; reference {fine} steps; both plans took {chose:.0f} s\n")
    print("| | evaluations | rms | mean | max | s |\n|---|---|---|---|---|---|")
    out = {}
    for name, got in passes.items():
        error = case.bits(got.log_prob - reference.log_prob)
        out[name] = got, error
        print(f"| {name} | {got.nfe:.0f} | {rms(error):.1e} | {error.mean():+.1e} | {error.abs().max():.1e} |", end="")
        print(f" {got.seconds:.1f} |", flush=True)
    return plans[1e-3], out


def cost_table(case: Case) -> tuple[float, float]:
    """An evaluation in forwards: ours and the recipe's."""
    at, hutchinson = Scales.at(case.sde, torch.tensor(0.5, dtype=torch.float64)), Hutchinson()
    flow = FlowWithDivergence(case.denoiser, hutchinson, True, case.noise(0))
    state, probe = flow.begin(case.x), hutchinson.directions(case.x, case.noise(0))[0]

    def forward() -> Tensor:
        with torch.no_grad():
            return case.denoiser(case.x, at.alpha, at.sigma)

    recipe = case.recipe(probe)
    ours, theirs = interleaved(lambda: flow(at, state, ALL), forward), interleaved(lambda: recipe(at, case.x), forward)
    print(f"\n### An evaluation of {len(case.x)} images, in forwards ({1e3 * ours[1]:.0f} ms)\n\n| ours | recipe |")
    print(f"|---|---|\n| {ours[2]:.2f} | {theirs[2]:.2f} |", flush=True)
    return ours[2], theirs[2]


def probe_table(case: Case, plan: Plan, seeds: int) -> tuple[float, float]:
    """Mean variance of a value by its probes: fresh and kept."""
    few = case.x[: max(len(case.x) // 2, 2)]

    def values(divergence: Divergence, x: Tensor) -> Tensor:
        return case.bits(torch.stack([case.ours(plan, divergence, 100 + i, x).log_prob for i in range(seeds)]))

    fresh = values(Hutchinson(fresh=True), case.x)
    rows = {
        "fresh Rademacher": (fresh, fresh, 1.0),
        "kept Rademacher": (values(Hutchinson(fresh=False), case.x), fresh, 1.0),
        "fresh gaussian": (values(Hutchinson(distribution="gaussian", fresh=True), case.x), fresh, 1.0),
        "fresh orthogonal, 4 products": (values(Hutchinson(4, "orthogonal", fresh=True), few), fresh[:, : len(few)], 4),
        "fresh Hutch++, 4 products": (values(HutchPlusPlus(1, 2, fresh=True), few), fresh[:, : len(few)], 4),
    }
    print(f"\n### Variance by the probes, {seeds} seeds, {plan.nfe} evaluations\n")
    print("| probes | images | standard deviation | variance x products, over fresh Rademacher's |\n|---|---|---|---|")
    for name, (of, against, products) in rows.items():
        ratio, error = ratio_of_variances(of, against)
        shown = f"{products * ratio:.2f} +- {products * error:.2f}"
        print(f"| {name} | {of.shape[1]} | {of.var(0).mean().sqrt():.1e} | {shown} |", flush=True)
    return float(fresh.var(0).mean()), float(rows["kept Rademacher"][0].var(0).mean())


def ratio_of_variances(of: Tensor, against: Tensor) -> tuple[float, float]:
    """Of values (seeds, images): the ratio of their images' mean variances, and its error by a bootstrap of both."""
    generator = torch.Generator().manual_seed(0)

    def ratio(images: Tensor, *seeds: Tensor) -> float:
        above, below = (v[rows][:, images].var(0).mean() for v, rows in zip((of, against), seeds, strict=True))
        return float(above / below)

    def again(count: int) -> Tensor:
        return torch.randint(count, (count,), generator=generator)

    many = [ratio(again(of.shape[1]), again(len(of)), again(len(against))) for _ in range(400)]
    return ratio(*(torch.arange(count) for count in (of.shape[1], len(of), len(against)))), float(torch.tensor(many).std())


def work_table(costs: dict[str, tuple[Pass, float, float, float]], first: str) -> None:
    """Work to a standard error of one image, for (a pass, forwards an evaluation, rms solver error, probes' variance).

    A value is the mean of R passes: error^2 = variance / R + solver error^2.
    """
    _, _, error, variance = costs[first]
    print("\n### Work for an image to a standard error, solver's and probes' together\n")
    print("| standard error | how | passes | forwards | s a batch | times |\n|---|---|---|---|---|---|")
    for target in (math.sqrt(variance + error**2) * share for share in (1.0, 1 / 3)):
        least = 0.0
        for name, (got, forwards, error, variance) in costs.items():
            spare = target**2 - error**2
            passes = math.ceil(variance / spare * (1 - 1e-9)) if spare > 0 else math.inf
            spent = passes * got.nfe * forwards
            least = least or spent
            print(f"| {target:.1e} | {name} | {passes} | {spent:,.0f} | {passes * got.seconds:,.0f} |", end="")
            print(f" {spent / least:.1f} |", flush=True)


def trained_tables(case: Case, evaluations: Sequence[int], fine: int, seeds: int) -> Plan:
    plan, passes = solver_table(case, evaluations, fine)
    forwards = cost_table(case)
    variances = probe_table(case, plan, seeds)
    names = [next(name for name in passes if "plan_for 1e-03" in name), *(n for n in passes if "recipe" in n)]
    costs = {}
    for name, which in zip(names, (0, 1, 1), strict=True):
        got, error = passes[name]
        costs[name.split(":")[0]] = got, forwards[which], rms(error), variances[which]
    work_table(costs, next(iter(costs)))
    return plan


def dequantisation_table(case: Case, plan: Plan) -> None:
    """Bits/dim of the images with noise in the cells drawn either way."""
    count, values = len(case.x), dict[str, Tensor]()
    for dequantisation in (Uniform(), TruncatedNormal()):
        x, log_q = (each[:count] for each in case.drawn(dequantisation))
        found = case.ours(plan, Hutchinson(), 7, x).log_prob
        values[str(dequantisation)] = case.bits(log_q - found)
    print("\n### Dequantisation\n\n| | bits/dim |\n|---|---|")
    values["difference"] = torch.sub(*values.values())
    for name, value in values.items():
        mean, error = mean_and_error(value)
        print(f"| {name} | {mean:.3f} +- {error:.3f} |", flush=True)


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vp", type=Path, help="a run of configs/mnist.py:vp")
    parser.add_argument("--vdm", type=Path, help="a run of configs/mnist.py:vdm")
    parser.add_argument("--only", choices=("analytic", "vp", "vdm"), help="one part")
    parser.add_argument("--quick", action="store_true", help="few of everything, in two minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.processor() or platform.machine()}, 1 thread"
    print(f"{date.today()}, {machine}, torch {torch.__version__}, scipy {scipy.__version__}")
    started, quick = time.perf_counter(), args.quick
    if args.only in (None, "analytic"):
        torch.set_default_dtype(torch.float64)
        agrees()
        analytic_tables(PROBLEMS[:2] if quick else PROBLEMS, ("vp",) if quick else tuple(PATHS), 32)
        torch.set_default_dtype(torch.float32)
    count, pilots, seeds = (2, 2, 5) if quick else (16, 12, 20)
    parts: dict[str, tuple[Path | None, Dequantisation, tuple[int, ...], int]] = {
        "vp": (args.vp, Uniform(), (15, 25) if quick else (15, 20, 25, 30, 40, 60), 60 if quick else 300),
        "vdm": (args.vdm, TruncatedNormal(), (39,) if quick else (39, 103, 203, 403), 100 if quick else 1000),
    }
    for name, (workdir, dequantisation, evaluations, fine) in parts.items():
        if workdir is None:
            print(f"\n{name}: left out, no --{name}=WORKDIR")
        elif args.only in (None, name):
            print(f"\n## {name}, trained, by {dequantisation}")
            case = Case(workdir, dequantisation, count, pilots)
            plan = trained_tables(case, evaluations, fine, seeds)
            dequantisation_table(case, plan)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
