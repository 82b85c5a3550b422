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
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scorefield.benchmarks.run import interleaved
from scorefield.benchmarks.solvers import image_like, isotropic
from scorefield.commands.run import open_trained, stored_tensor
from scorefield.likelihood import (
    Dequantisation,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    Plan,
    TruncatedNormal,
    Uniform,
    choose_solver,
    log_likelihood,
    mean_and_error,
)
from scorefield.likelihood.choose_solver import PILOTS, Pilots
from scorefield.likelihood.divergence import Divergence
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.models.analytic import GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers import (
    AdamsMoulton,
    Adaptive,
    FlowSolver,
    PerSampleNoise,
    Scales,
    Schedule,
    grids,
    probability_flow,
)
from scorefield.solvers.ode.flow import ALL, Field, Rows, State
from scorefield.solvers.variables import SoftClippedLogSNR

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
TOLERANCES = (1e-5, 1e-3)
KEPT = Hutchinson(fresh=False)
MANY = 103  # evaluations with which a plan for more is compared by its probes
MOST = 200  # steps of a plan
COARSE = 60  # evaluations up to which constants are chosen for their number

Slope = Callable[[Scales, Tensor], tuple[Tensor, Tensor]]  # velocity and divergence at x


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
        self.denoiser = GaussianMixture(means, stds, torch.ones(len(means)))

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
    x0 = flow.denoiser.sample(count, generator)
    alpha, sigma = sde.scales(sde.t_min)
    return alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)


def agrees() -> None:
    """The closed form against automatic differentiation, in d = 2."""
    flow, sde = mixture("d=2"), VPSDE()
    x, at = drawn(flow, sde, 5, 0), Scales.at(sde, torch.tensor(0.2))
    exact = FlowWithDivergence(BoundDenoiser(flow.denoiser, None, len(x)), Exact(), False, torch.randn_like)
    state = exact.begin(x)
    for mine, theirs in zip(flow(at, state, ALL), exact(at, state, ALL), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)
    assert torch.allclose(flow.log_prob(x, (at.alpha, at.sigma)), flow.denoiser.log_prob(x, at.alpha, at.sigma))


def by_recipe(slope: Slope, sde: SDE, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Scipy's RK45 in time on the whole batch: latents, and the divergences' integrals."""

    def flat(*parts: Tensor) -> Tensor:
        return torch.cat([part.flatten().double() for part in parts])

    def change(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.as_tensor(state[: x.numel()]).reshape(x.shape).to(x)
        return flat(*slope(Scales.at(sde, torch.tensor(t, dtype=torch.float64)), y)).numpy()

    start = flat(x, torch.zeros(len(x))).numpy()
    found = solve_ivp(change, (sde.t_min, sde.t_max), start, rtol=tolerance, atol=tolerance, method="RK45")
    assert found.success
    end = torch.as_tensor(found.y[:, -1])
    return end[: x.numel()].reshape(x.shape).to(x), end[x.numel() :]


class Informed(Pilots):
    """Pilots of a mixture, which know its divergence."""

    def __init__(self, mixture: MixtureFlow, sde: SDE) -> None:
        super().__init__(mixture.denoiser, sde, drawn(mixture, sde, PILOTS, 1))
        self.mixture = mixture

    def flow(self, count: int) -> tuple[Field, State]:
        return self.mixture, (self.x[:count], self.x.new_zeros(count, 1))


def analytic(name: str, sde: SDE, count: int) -> tuple[list[str], list[AdamsMoulton]]:
    """What to show of the errors, and the constants that the pilots chose for each of `COLUMNS`."""
    flow = mixture(name)
    x, dims = drawn(flow, sde, count, 2), flow.means.shape[1]
    truth, ends = flow.log_prob(x, sde.scales(sde.t_min)), torch.tensor([sde.t_min, sde.t_max])
    solvers = [Informed(flow, sde).best(n - 3)[0] for n in COLUMNS]
    start = x, x.new_zeros(count, 1)

    def ours(solver: FlowSolver, ts: Tensor) -> tuple[Tensor, Tensor]:
        latent, change = solver.integrate(flow, start, Schedule(sde, ts, x))
        return latent, change[:, 0]

    runs: list[Callable[[], tuple[Tensor, Tensor]]] = []
    runs += [partial(ours, solver, uniform_in(sde, n, solver)) for n, solver in zip(COLUMNS, solvers, strict=True)]
    runs += [partial(by_recipe, flow.slope, sde, x, tolerance) for tolerance in TOLERANCES]
    runs += [partial(ours, Adaptive("scipy:RK45", each, each, per_sample=False), ends) for each in TOLERANCES]
    shown = []
    for run in runs:
        flow.calls = 0
        latent, change = run()
        error = (flow.log_prob(latent, sde.scales(sde.t_max)) + change - truth) / (dims * math.log(2))
        shown.append(f"{rms(error):.1e} ({error.mean():+.0e}, {error.abs().median():.0e}) [{flow.calls}]")
    return shown, solvers


def analytic_tables(problems: Sequence[str], paths: Sequence[str], count: int) -> None:
    adaptive = [f"RK45 in {clock}, {each:.0e}" for clock in ("time", "log-SNR") for each in TOLERANCES]
    print(f"\n## Mixtures, {count} images: rms of the errors (mean, median of their sizes) [evaluations]\n")
    print(f"| path | problem | {' | '.join([f'{n} evaluations' for n in COLUMNS] + adaptive)} |")
    print("|---|---|" + "---|" * (len(COLUMNS) + len(adaptive)))
    chosen: list[str] = []
    for path, name in itertools.product(paths, problems):
        shown, solvers = analytic(name, PATHS[path], count)
        print(f"| {path} | {name} | {' | '.join(shown)} |", flush=True)
        chosen += [f"| {path} | {name} | {' | '.join(map(constants, solvers))} |"]
    print("\nWhat the pilots chose: order; low, high; spread; pace\n")
    print(f"| path | problem | {' | '.join(map(str, COLUMNS))} |")
    print("|---|---|" + "---|" * len(COLUMNS) + "\n" + "\n".join(chosen))


def uniform_in(sde: SDE, evaluations: int, solver: AdamsMoulton) -> Tensor:
    assert isinstance(solver.clock, SoftClippedLogSNR)
    return grids.uniform_in(sde, evaluations - 3, solver.clock).flip(0)


def constants(solver: AdamsMoulton) -> str:
    clock = solver.clock
    assert isinstance(clock, SoftClippedLogSNR)
    return f"{solver.order}; {clock.low:g}, {clock.high:g}; {clock.spread or 1:.2f}; {clock.pace:.0f}"


class Part(NamedTuple):
    """What is asked of a trained network: runs' defaults."""

    workdir: Path | None
    dequantisation: Dequantisation
    images: int  # and as many for pilots
    evaluations: tuple[int, ...]
    fine: int  # steps of the reference
    coarse: int | None  # evaluations with which probes of every kind are compared


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

    def noise(self, seed: int, x: Tensor | None = None) -> PerSampleNoise:
        # Not the streams that the draw is from: a probe that knows the noise in x sees another divergence.
        return PerSampleNoise(10_000 + seed, range(len(self.x if x is None else x)))

    def ours(self, plan: Plan, divergence: Divergence, seed: int = 0, x: Tensor | None = None) -> Pass:
        start = time.process_time()
        found = log_likelihood(
            self.denoiser, self.sde, self.x if x is None else x, divergence=divergence, solver=plan.solver, ts=plan.ts,
            noise=self.noise(seed, x),
        )  # fmt: skip
        return Pass(found.log_prob.double(), found.nfe, time.process_time() - start)

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
        return replace(plan, solver=solver, nfe=evaluations, ts=uniform_in(self.sde, evaluations, solver))


def solver_table(case: Case, evaluations: Sequence[int], fine: int) -> tuple[Plan, dict[str, tuple[Pass, Tensor]]]:
    """Errors against many steps with the same kept probe; the plan for 1e-3, and passes with their errors."""
    noise, start = PerSampleNoise(20_000, range(len(case.tries))), time.process_time()
    plans = {
        tolerance: choose_solver(case.denoiser, case.sde, case.tries, tolerance, noise=noise, most=MOST)
        for tolerance in (1e-2, 1e-3)
    }
    chose = time.process_time() - start
    clock, plan = SoftClippedLogSNR(0.002, 30.0, spread=0.8), plans[1e-3]
    reference = case.ours(case.with_steps(plan, fine + 3, AdamsMoulton(4, clock)), KEPT)
    pilots = Pilots(case.denoiser, case.sde, case.tries, noise=noise)
    passes = dict[str, Pass]()
    for n in evaluations:
        solver = pilots.best(n - 3)[0] if n <= COARSE else plan.solver
        passes[f"in {n}: {constants(solver)}"] = case.ours(case.with_steps(plan, n, solver), KEPT)
    for tolerance, plan in plans.items():
        said = f"estimates {plan.error:.1e}, {'met' if plan.met else 'NOT met'}, {plan.spent} evaluations to choose"
        passes[f"plan_for {tolerance:.0e}: {constants(plan.solver)}: {said}"] = case.ours(plan, KEPT)
    passes["recipe, RK45 at 1e-5"], passes["recipe, RK45 at 1e-3"] = case.theirs(1e-5), case.theirs(1e-3)
    passes["half the reference's steps"] = case.ours(case.with_steps(plan, fine // 2 + 3, AdamsMoulton(4, clock)), KEPT)
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
    """Mean variance of a value by its probes, fresh and kept; other probes on a coarse grid, if asked."""
    x = case.x[:8]

    def values(divergence: Divergence, plan: Plan = plan) -> Tensor:
        return case.bits(torch.stack([case.ours(plan, divergence, 100 + i, x).log_prob for i in range(seeds)]))

    print(f"\n### Variance by the probes, {seeds} seeds, {len(x)} images\n")
    print("| probes | evaluations | standard deviation | variance x products, over fresh Rademacher's |")
    print("|---|---|---|---|")

    def row(name: str, products: int, of: Tensor, against: Tensor, nfe: int = plan.nfe) -> float:
        ratio, error = (products * each for each in ratio_of_variances(of, against))
        shown = "1" if of is against else f"{ratio:.2f} +- {error:.2f}"
        print(f"| {name} | {nfe} | {of.var(0).mean().sqrt():.1e} | {shown} |", flush=True)
        return float(of.var(0).mean())

    fresh = values(Hutchinson())
    variances = row("fresh Rademacher", 1, fresh, fresh), row("kept Rademacher", 1, values(KEPT), fresh)
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

    def again(count: int) -> Tensor:
        return torch.randint(count, (count,), generator=generator)

    many = [ratio(again(of.shape[1]), again(len(of)), again(len(against))) for _ in range(400)]
    whole = ratio(*(torch.arange(count) for count in (of.shape[1], len(of), len(against))))
    return whole, float(torch.tensor(many).std())


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
    mine = next(name for name in passes if name.startswith("plan_for 1e-03"))
    if plan.nfe > MANY:
        plan = case.with_steps(plan, MANY)
        mine = next(name for name, (got, _) in passes.items() if got.nfe == MANY)
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
        analytic_tables(PROBLEMS[:2] if quick else PROBLEMS, ("vp",) if quick else tuple(PATHS), 32 if quick else 64)
        torch.set_default_dtype(torch.float32)
    seeds = 8 if quick else 20
    parts: dict[str, Part] = {
        "vp": Part(args.vp, Uniform(), 16, (15, 20, 25, 30, 40, 60), 300, 25),
        "vdm": Part(args.vdm, TruncatedNormal(), 4, (39, MANY, 203, 403), 800, None),
    }
    for name, (workdir, dequantisation, count, evaluations, fine, coarse) in parts.items():
        if workdir is None:
            print(f"\n{name}: left out, no --{name}=WORKDIR")
        elif args.only in (None, name):
            print(f"\n## {name}, trained, by {dequantisation}")
            if quick:
                count, evaluations, fine, coarse = 2, evaluations[:2], fine // 4, None
            plan = trained_tables(case := Case(workdir, dequantisation, count, count), evaluations, fine, seeds, coarse)
            dequantisation_table(case, plan)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
