"""The deterministic solvers against exact flows: their orders, their limits, the way there and back.

For N(m, s^2) data the probability flow carries each coordinate along its quantile, so the exact answer is
x(s) = alpha_s m + (x - alpha_t m) std_s / std_t,  std^2 = alpha^2 s^2 + sigma^2. For a mixture the oracle is scipy on
the flow in the coordinates (x / alpha, sigma / alpha), where it is the same on every path and needs no drift.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import PATHS, SHAPES, gaussian, mixture
from scipy.integrate import solve_ivp
from torch import Tensor

from models.analytic import GaussianMixture
from sde_lib import SDE, VPSDE
from solvers import DDIM, Adaptive, DPMSolver, Euler, Heun, Solver, grids

SOLVERS: dict[str, tuple[Solver, int]] = {
    "ddim": (DDIM(), 1),
    "euler": (Euler(), 1),
    "heun": (Heun(), 2),
    "dpm1-x0": (DPMSolver(order=1, predict="x0"), 1),
    "dpm1-eps": (DPMSolver(order=1, predict="eps"), 1),
    "dpm2m-x0": (DPMSolver(order=2, predict="x0"), 2),
    "dpm2m-eps": (DPMSolver(order=2, predict="eps"), 2),
    "dpm2s-x0": (DPMSolver(order=2, multistep=False, predict="x0"), 2),
    "dpm2s-eps": (DPMSolver(order=2, multistep=False, predict="eps"), 2),
}
METHODS = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "scipy:RK45", "scipy:DOP853", "scipy:LSODA")

every_path = pytest.mark.parametrize("path", PATHS)
every_solver = pytest.mark.parametrize("name", SOLVERS)
both_ways = pytest.mark.parametrize("way", ["sampling", "encoding"])


def marginal_std(model: GaussianMixture, sde: SDE, t: Tensor | float) -> Tensor:
    alpha, sigma = sde.scales(t)
    return torch.sqrt((alpha * model.stds[0]) ** 2 + sigma**2)


def flow(model: GaussianMixture, sde: SDE, x: Tensor, ts: Tensor) -> Tensor:
    """The exact flow of a Gaussian from ts[0] to ts[-1]."""
    mean = model.means[0]
    (start, _), (end, _) = sde.scales(ts[0]), sde.scales(ts[-1])
    return end * mean + (x - start * mean) * marginal_std(model, sde, ts[-1]) / marginal_std(model, sde, ts[0])


def mixture_flow(model: GaussianMixture, sde: SDE, x: Tensor, ts: Tensor) -> Tensor:
    """dy / dlog n = y - D(y) with y = x / alpha and n = sigma / alpha, in numpy, by scipy at a tolerance of 1e-12."""
    (alpha, sigma), (alpha_end, sigma_end) = sde.scales(ts[0]), sde.scales(ts[-1])
    means, stds, weights = model.means.flatten(1).numpy(), model.stds.flatten(1).numpy(), model.weights.numpy()

    def slope(log_n: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        y = flat.reshape(len(x), 1, -1)
        noise = math.exp(2 * log_n)
        variances = stds**2 + noise
        log_joint = np.log(weights) - ((y - means) ** 2 / variances + np.log(variances)).sum(2) / 2
        joint = np.exp(log_joint - log_joint.max(1, keepdims=True))
        share = (joint / joint.sum(1, keepdims=True))[..., None]
        return (y[:, 0] - (share * (means * noise + y * stds**2) / variances).sum(1)).ravel()

    ends = math.log(sigma / alpha), math.log(sigma_end / alpha_end)
    y = solve_ivp(slope, ends, (x / alpha).numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return alpha_end * torch.from_numpy(y).reshape(x.shape)


def start(model: GaussianMixture, sde: SDE, t: Tensor, n: int = 8, seed: int = 0) -> Tensor:
    """n draws of the path's marginal at time t."""
    generator = torch.Generator().manual_seed(seed)
    x0 = model.sample((n,), generator)
    return sde.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))


def measured_order(solver: Solver, model: Any, sde: SDE, x: Tensor, series: Sequence[Tensor], exact: Tensor) -> float:
    """The slope of log error against log steps."""
    errors = [float((solver(model, sde, x, ts) - exact).norm()) for ts in series]
    return -float(np.polyfit([math.log(len(ts) - 1) for ts in series], np.log(errors), 1)[0])


def directed(ts: Tensor, way: str) -> Tensor:
    return ts.flip(0) if way == "encoding" else ts


# The order


@every_path
@every_solver
@both_ways
def test_order_is_the_nominal_one_on_every_path(path: str, name: str, way: str) -> None:
    # Equal steps in log-SNR: there the flow is smooth, with rates of order one, from end to end of every path (in time
    # EDM's needs 1e4 steps to see the data, and VP's denoiser has a sqrt(t) at 0). 48 steps are then steps of
    # at most 0.6 in log-SNR, small enough for the leading term of the error to rule.
    solver, order = SOLVERS[name]
    sde, model = PATHS[path], gaussian((2,))
    series = [directed(grids.log_snr(sde, steps), way) for steps in (48, 96, 192)]
    x = start(model, sde, series[0][0])
    assert abs(measured_order(solver, model, sde, x, series, flow(model, sde, x, series[0])) - order) < 0.2


@pytest.mark.parametrize("shape", SHAPES[1:])
@every_path
@every_solver
def test_order_is_the_nominal_one_for_images(shape: tuple[int, ...], path: str, name: str) -> None:
    solver, order = SOLVERS[name]
    sde, model = PATHS[path], gaussian(shape)
    series = [grids.log_snr(sde, steps) for steps in (48, 96)]
    x = start(model, sde, series[0][0], n=3)
    assert abs(measured_order(solver, model, sde, x, series, flow(model, sde, x, series[0])) - order) < 0.2


@pytest.mark.parametrize("path", ["vp", "ve", "edm", "rectified", "ddpm-linear"])
@every_solver
def test_order_is_the_nominal_one_for_a_mixture(path: str, name: str) -> None:
    solver, order = SOLVERS[name]
    sde, model = PATHS[path], mixture((2,))
    series = [grids.log_snr(sde, steps) for steps in (48, 96, 192)]
    x = start(model, sde, series[0][0])
    assert abs(measured_order(solver, model, sde, x, series, mixture_flow(model, sde, x, series[0])) - order) < 0.2


@pytest.mark.parametrize("path", ["vp", "subvp", "ve", "cosine", "rectified", "ddpm-linear", "ddpm-scaled-linear"])
@pytest.mark.parametrize("name", ["ddim", "euler", "heun"])
@both_ways
def test_order_holds_on_equal_steps_in_time(path: str, name: str, way: str) -> None:
    # Where the flow is smooth in t too. Not EDM (sigma = t falls from 80 past the data's 0.5 in one step), and not
    # DDPM's cosine betas, whose clamp at 0.999 puts a jump into the drift of the last of a thousand steps.
    solver, order = SOLVERS[name]
    sde, model = PATHS[path], gaussian((2,))
    series = [directed(grids.uniform(sde, steps), way) for steps in (48, 96, 192)]
    x = start(model, sde, series[0][0])
    assert abs(measured_order(solver, model, sde, x, series, flow(model, sde, x, series[0])) - order) < 0.2


@pytest.mark.parametrize("path", ["ve", "edm"])
@every_solver
def test_order_holds_on_karras_steps(path: str, name: str) -> None:
    solver, order = SOLVERS[name]
    sde, model = PATHS[path], gaussian((2,))
    series = [grids.karras(sde, steps) for steps in (48, 96, 192)]
    x = start(model, sde, series[0][0])
    assert abs(measured_order(solver, model, sde, x, series, flow(model, sde, x, series[0])) - order) < 0.2


@pytest.mark.parametrize("path", ["vp", "edm", "rectified"])
@every_solver
def test_order_holds_when_long_and_short_steps_alternate(path: str, name: str) -> None:
    # Twice as long every other step, and no smoother as the steps grow many: a multistep solver that takes all steps
    # for equal is of order 2 on every grid above, and of order 1 here.
    solver, order = SOLVERS[name]
    sde, model = PATHS[path], gaussian((2,))
    series = [grids.log_snr(sde, 3 * pairs)[torch.arange(3 * pairs + 1) % 3 != 1] for pairs in (24, 48, 96)]
    x = start(model, sde, series[0][0])
    assert abs(measured_order(solver, model, sde, x, series, flow(model, sde, x, series[0])) - order) < 0.2


@every_path
@every_solver
def test_float32_agrees_with_float64_to_rounding(path: str, name: str) -> None:
    # A hundred steps of a few operations, each with 6e-8 of rounding relative to the state, which may all add up;
    # the states of the path's two ends set the scale, as the flow shrinks what is rounded at the noisy end.
    solver, _ = SOLVERS[name]
    sde = PATHS[path]
    ts = grids.log_snr(sde, 100)
    for series in (ts, ts.flip(0)):
        x = start(gaussian((2,)), sde, series[0]).float()
        single = solver(gaussian((2,), torch.float32), sde, x, series)
        double = solver(gaussian((2,)), sde, x.double(), series)
        assert single.dtype == torch.float32
        assert float((single - double).abs().max()) < 100 * 5 * 6e-8 * float(double.abs().max())


# Single steps by hand


def constant_x0(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.full_like(x, 0.3)


def constant_noise(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - sigma * 0.3) / alpha


@every_path
@pytest.mark.parametrize("solver", [DDIM(), *(DPMSolver(order, many) for order in (1, 2) for many in (True, False))])
def test_one_step_is_exact_when_the_denoiser_stands_still(path: str, solver: Solver) -> None:
    sde = PATHS[path]
    ts = torch.tensor([sde.t_max, (sde.t_min + sde.t_max) / 3, sde.t_min], dtype=torch.float64)
    x = torch.tensor([[-2.0, 0.1], [0.7, 3.0]], dtype=torch.float64)
    (alpha, sigma), (alpha_end, sigma_end) = sde.scales(ts[0]), sde.scales(ts[-1])
    expected = alpha_end * 0.3 + sigma_end * (x - alpha * 0.3) / sigma
    torch.testing.assert_close(solver(constant_x0, sde, x, ts), expected, rtol=1e-12, atol=1e-12)


@every_path
@pytest.mark.parametrize("solver", [DPMSolver(n, many, "eps") for n in (1, 2) for many in (True, False)])
def test_one_step_is_exact_when_the_noise_stands_still(path: str, solver: Solver) -> None:
    sde = PATHS[path]
    lowest = float(sde.time(-8.0))  # further down alpha is so small that x / alpha loses the noise's digits
    ts = torch.tensor([lowest, (sde.t_min + lowest) / 3, sde.t_min], dtype=torch.float64)
    x = torch.tensor([[-2.0, 0.1], [0.7, 3.0]], dtype=torch.float64)
    (alpha, sigma), (alpha_end, sigma_end) = sde.scales(ts[0]), sde.scales(ts[-1])
    expected = alpha_end * (x - sigma * 0.3) / alpha + sigma_end * 0.3
    torch.testing.assert_close(solver(constant_noise, sde, x, ts), expected, rtol=1e-10, atol=1e-10)


@every_path
@pytest.mark.parametrize("predict", ["x0", "eps"])
@both_ways
def test_dpm_solver_of_order_1_is_ddim(path: str, predict: str, way: str) -> None:
    sde, model = PATHS[path], gaussian((2,))
    ts = directed(grids.log_snr(sde, 7), way)
    x = start(model, sde, ts[0])
    ddim, dpm = DDIM()(model, sde, x, ts), DPMSolver(order=1, predict=predict)(model, sde, x, ts)
    # Equal in exact arithmetic. The eps form cancels x against noise of the same size where alpha is small, and so
    # loses a factor 1 / alpha, which is 2e4 at DDPM's cosine end.
    torch.testing.assert_close(dpm, ddim, rtol=1e-10, atol=1e-10)


def test_euler_in_sigma_is_karras_euler_step() -> None:
    sde, model = PATHS["edm"], gaussian((2,))
    ts = torch.tensor([5.0, 3.0, 0.4], dtype=torch.float64)
    x = expected = start(model, sde, ts[0])
    mean, variance = model.means[0], model.stds[0] ** 2
    for sigma, sigma_next in itertools.pairwise(ts.tolist()):
        denoised = mean + variance * (expected - mean) / (variance + sigma**2)
        expected = expected + (sigma_next - sigma) * (expected - denoised) / sigma  # Karras et al. 2022, Alg. 1, line 5
    torch.testing.assert_close(Euler()(model, sde, x, ts), expected, rtol=1e-12, atol=1e-12)


def test_heun_is_karras_second_order_step() -> None:
    sde, model = PATHS["edm"], gaussian((2,))
    x, (t, s) = start(model, sde, torch.tensor(5.0)), (5.0, 3.0)
    mean, variance = model.means[0], model.stds[0] ** 2

    def slope(y: Tensor, sigma: float) -> Tensor:
        return (y - mean - variance * (y - mean) / (variance + sigma**2)) / sigma

    first = slope(x, t)
    second = slope(x + (s - t) * first, s)
    expected = x + (s - t) * (first + second) / 2  # Karras et al. 2022, Alg. 1, lines 7-8
    ts = torch.tensor([t, s], dtype=torch.float64)
    torch.testing.assert_close(Heun()(model, sde, x, ts), expected, rtol=1e-12, atol=1e-12)


def test_second_step_of_dpm_2m_is_the_papers() -> None:
    # DPM-Solver++, Alg. 2, written with its own r = h_{i-1} / h_i, on steps of unequal length.
    sde, model = VPSDE(), gaussian((2,))
    ts = sde.time(torch.tensor([-4.0, -1.0, 1.0], dtype=torch.float64))
    (a0, a1, a2), (s0, s1, s2) = sde.scales(ts)
    x = start(model, sde, ts[0])
    h1, h2 = 1.5, 1.0  # in half the log-SNR
    d0 = model(x, a0, s0)
    y = s1 / s0 * x - a1 * math.expm1(-h1) * d0
    d1, r = model(y, a1, s1), h1 / h2
    expected = s2 / s1 * y - a2 * math.expm1(-h2) * ((1 + 1 / (2 * r)) * d1 - d0 / (2 * r))
    torch.testing.assert_close(DPMSolver()(model, sde, x, ts), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "per_step"), [(n, 2 if n == "heun" or n.startswith("dpm2s") else 1) for n in SOLVERS])
def test_evaluations_a_step_are_as_promised(name: str, per_step: int) -> None:
    calls = 0

    def counting(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * x

    sde = PATHS["vp"]
    SOLVERS[name][0](counting, sde, torch.ones(2, 2), grids.log_snr(sde, 9))
    assert calls == 9 * per_step


# There and back


@every_path
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 3), ("dpm2s-x0", 3)])
def test_round_trip_error_falls_with_the_steps(path: str, name: str, order: int) -> None:
    # A one-step solver of order p goes there by the field f + h^p e and back by f + (-h)^p e. For odd p the errors add
    # up and the round trip is of order p; for even p the leading ones undo each other, and it is of order p + 1.
    sde, model = PATHS[path], gaussian((2,))
    solver, series = SOLVERS[name][0], [grids.log_snr(sde, steps) for steps in (64, 128, 256)]
    x = start(model, sde, series[0][-1])
    errors = [float((solver(model, sde, solver(model, sde, x, ts.flip(0)), ts) - x).norm()) for ts in series]
    slope = -np.polyfit([math.log(len(ts) - 1) for ts in series], np.log(errors), 1)[0]
    assert abs(slope - order) < 0.3  # a wider band: two errors that cancel leave the asymptotic regime later


@pytest.mark.parametrize(("path", "shape"), [(p, s) for p in PATHS for s in SHAPES if s == (2,) or p in ("vp", "edm")])
def test_adaptive_round_trip_returns_to_tolerance(path: str, shape: tuple[int, ...]) -> None:
    sde, model = PATHS[path], gaussian(shape)
    ts = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    x = start(model, sde, ts[-1], n=1)
    solver = Adaptive(rtol=1e-6, atol=1e-6)
    back = solver(model, sde, solver(model, sde, x, ts.flip(0)), ts)
    # At most 30 steps each way, each within a tolerance in the norm that is controlled, the root mean square.
    assert float((back - x).square().mean().sqrt()) < 2 * 30 * 2e-6


# Adaptive steps


class Recorder:
    """A denoiser that keeps the noise levels it was asked at."""

    def __init__(self, model: GaussianMixture) -> None:
        self.model, self.levels = model, list[float]()

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        self.levels.append(float(sigma / alpha))
        return self.model(x, alpha, sigma)


def within(levels: list[float], sde: SDE, ts: Tensor | None = None) -> bool:
    """Whether these noise levels are between the grid's ends, or the path's."""
    ends = (sde.t_min, sde.t_max) if ts is None else (ts.min(), ts.max())
    low, high = (float(sigma / alpha) for alpha, sigma in map(sde.scales, ends))
    return low * (1 - 1e-12) <= min(levels) and max(levels) <= high * (1 + 1e-12)


@every_path
@pytest.mark.parametrize("method", METHODS)
@both_ways
def test_adaptive_arrives_within_tolerance_and_never_leaves_the_path(path: str, method: str, way: str) -> None:
    sde, model, tolerance = PATHS[path], gaussian((2,)), {"adaptive_heun": 1e-3, "bosh3": 1e-4}.get(method, 1e-5)
    ts = directed(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64), way)
    x, recorder = start(model, sde, ts[0], n=1), Recorder(model)
    exact = flow(model, sde, x, ts)
    error = (Adaptive(method, rtol=tolerance, atol=tolerance)(recorder, sde, x, ts) - exact).abs()
    # A step errs by about atol + rtol |x|. The flow carries that along as it does the state: the relative part stays
    # relative, the absolute one grows by std_end / std_then, at most std_end / std_start. There are fewer steps than
    # evaluations.
    growth = marginal_std(model, sde, ts[-1]) / marginal_std(model, sde, ts[0])
    assert bool((error < len(recorder.levels) * tolerance * (growth.clamp(min=1) + exact.abs())).all())
    assert within(recorder.levels, sde)


@pytest.mark.parametrize("path", ["vp", "ve", "cosine", "rectified"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "scipy:RK45"])
def test_adaptive_in_float32_never_leaves_the_path(path: str, method: str) -> None:
    # The engine's clock is in the state's precision there, and rounds past the end.
    sde, recorder = PATHS[path], Recorder(gaussian((2,)))
    ts = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    for series in (ts, ts.flip(0)):
        x = start(gaussian((2,)), sde, series[0], n=1).float()
        end = Adaptive(method, rtol=1e-3, atol=1e-3)(recorder, sde, x, series)
        assert end.dtype == torch.float32
        assert bool(end.isfinite().all())
    assert within(recorder.levels, sde)


@pytest.mark.parametrize("path", ["vp", "edm", "rectified"])
@pytest.mark.parametrize("method", METHODS)
def test_adaptive_error_falls_with_the_tolerance(path: str, method: str) -> None:
    # A thousand times tighter must be at least a hundred times better: a step's error goes with the tolerance, the
    # number of steps with its power -1/order, and a tenth is left for luck.
    sde, model = PATHS[path], gaussian((2,))
    ts = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    x = start(model, sde, ts[0], n=2)
    exact = flow(model, sde, x, ts)
    coarse, fine = (
        float((Adaptive(method, rtol=t, atol=t, per_sample=False)(model, sde, x, ts) - exact).norm())
        for t in ((1e-2, 1e-5) if method in ("adaptive_heun", "bosh3") else (1e-4, 1e-7))
    )
    assert fine < 1e-2 * coarse


@pytest.mark.parametrize(("path", "shape"), zip(["vp", "ve", "rectified"], SHAPES, strict=True))
@both_ways
def test_adaptive_finds_the_flow_of_a_mixture(path: str, shape: tuple[int, ...], way: str) -> None:
    sde, model = PATHS[path], mixture(shape)
    ts = directed(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64), way)
    x = start(model, sde, ts[0], n=2)
    end = Adaptive("dopri8", rtol=1e-11, atol=1e-11)(model, sde, x, ts)
    exact = mixture_flow(model, sde, x, ts)
    # Two engines at 1e-11 and 1e-12, some 50 steps, errors growing by at most the ratio of the two ends' sizes, 100.
    assert float((end - exact).abs().max()) < 50 * 1e-11 * 100


@pytest.mark.parametrize("method", ["dopri5", "scipy:LSODA"])
def test_adaptive_sample_does_not_depend_on_its_batch(method: str) -> None:
    sde, model = PATHS["vp"], gaussian((3, 8, 8))
    ts = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    x = start(model, sde, ts[0], n=3)
    x[1] *= 40.0  # a mate that needs other steps
    solver = Adaptive(method)
    together = solver(model, sde, x, ts)
    alone = torch.cat([solver(model, sde, row[None], ts) for row in x])
    assert torch.equal(together, alone)
    shared = Adaptive(method, per_sample=False)(model, sde, x, ts)
    assert not torch.equal(shared[0], together[0])  # or else the above would show nothing
    torch.testing.assert_close(shared, together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@both_ways
def test_adaptive_stays_between_the_ends_of_a_grid_on_part_of_the_path(method: str, way: str) -> None:
    # The path goes on beyond them, so nothing but the engine itself keeps its last step from going there too.
    sde, recorder = PATHS["edm"], Recorder(gaussian((2,)))
    ts = directed(torch.tensor([20.0, 0.3], dtype=torch.float64), way)
    x = start(recorder.model, sde, ts[0], n=1)
    end = Adaptive(method, rtol=1e-4, atol=1e-4)(recorder, sde, x, ts)
    torch.testing.assert_close(end, flow(recorder.model, sde, x, ts), rtol=5e-3, atol=5e-3)
    assert within(recorder.levels, sde, ts)


def test_adaptive_ends_at_the_grids_ends_and_ignores_what_is_between() -> None:
    sde, model = PATHS["edm"], gaussian((2,))
    ts = torch.tensor([20.0, 7.0, 5.0, 0.3], dtype=torch.float64)
    x = start(model, sde, ts[0], n=1)
    end = Adaptive(rtol=1e-9, atol=1e-9)(model, sde, x, ts)
    assert torch.equal(end, Adaptive(rtol=1e-9, atol=1e-9)(model, sde, x, ts[[0, -1]]))
    torch.testing.assert_close(end, flow(model, sde, x, ts), rtol=1e-7, atol=1e-7)
