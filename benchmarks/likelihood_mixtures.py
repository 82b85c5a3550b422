"""Solvers of a likelihood on mixtures, where divergence, prior and log-density are known in closed form.

The data are drawn from the marginal at t_min, so errors are the solver's only. `benchmarks.likelihood` prints them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scorefield.benchmarks.solvers import image_like, isotropic
from scorefield.likelihood import Exact
from scorefield.likelihood.choose_solver import solvers_for
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.likelihood.plan import grid_of
from scorefield.models.analytic import GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers import Adaptive, FlowSolver, Scales, Schedule
from scorefield.solvers.ode.flow import ALL, Rows, State

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
Slope = Callable[[Scales, Tensor], tuple[Tensor, Tensor]]  # velocity and divergence at x


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
    """Scipy's RK45 in time, with the batch as one state: latents, and the integrals of the divergence."""

    def flat(*parts: Tensor) -> Tensor:
        return torch.cat([part.flatten().double() for part in parts])

    def change(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.as_tensor(state[: x.numel()]).reshape(x.shape).to(x)
        return flat(*slope(Scales.at(sde, torch.tensor(t, dtype=torch.float64)), y)).numpy()

    start = flat(x, torch.zeros(len(x))).numpy()
    solution = solve_ivp(change, (sde.t_min, sde.t_max), start, rtol=tolerance, atol=tolerance, method="RK45")
    assert solution.success
    end = torch.as_tensor(solution.y[:, -1])
    return end[: x.numel()].reshape(x.shape).to(x), end[x.numel() :]


def analytic(name: str, sde: SDE, count: int) -> list[str]:
    """What to show of the errors, in each of `COLUMNS` evaluations and by other solvers."""
    flow = mixture(name)
    x, dims = drawn(flow, sde, count, 2), flow.means.shape[1]
    truth, ends = flow.log_prob(x, sde.scales(sde.t_min)), torch.tensor([sde.t_min, sde.t_max])
    solver = solvers_for(sde, x)[0]
    start = x, x.new_zeros(count, 1)

    def ours(solver: FlowSolver, ts: Tensor) -> tuple[Tensor, Tensor]:
        latent, change = solver.integrate(flow, start, Schedule(sde, ts, x))
        return latent, change[:, 0]

    runs: list[Callable[[], tuple[Tensor, Tensor]]] = []
    runs += [partial(ours, solver, grid_of(solver, sde, n - 3)) for n in COLUMNS]
    runs += [partial(by_recipe, flow.slope, sde, x, tolerance) for tolerance in TOLERANCES]
    runs += [partial(ours, Adaptive("scipy:RK45", each, each, per_sample=False), ends) for each in TOLERANCES]
    shown = []
    for run in runs:
        flow.calls = 0
        latent, change = run()
        error = (flow.log_prob(latent, sde.scales(sde.t_max)) + change - truth) / (dims * math.log(2))
        shown.append(f"{rms(error):.1e} ({error.mean():+.0e}, {error.abs().median():.0e}) [{flow.calls}]")
    return shown


def analytic_tables(problems: Sequence[str], paths: Sequence[str], count: int) -> None:
    adaptive = [f"RK45 in {variable}, {each:.0e}" for variable in ("time", "log-SNR") for each in TOLERANCES]
    print(f"\n## Mixtures, {count} images: rms of the errors (mean, median of their sizes) [evaluations]\n")
    print(f"| path | problem | {' | '.join([f'{n} evaluations' for n in COLUMNS] + adaptive)} |")
    print("|---|---|" + "---|" * (len(COLUMNS) + len(adaptive)))
    for path, name in itertools.product(paths, problems):
        print(f"| {path} | {name} | {' | '.join(analytic(name, PATHS[path], count))} |", flush=True)


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())
