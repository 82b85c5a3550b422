"""What every solver, grid and noise source promises whoever calls it: shapes, refusals, seeds, progress, gradients."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import CORRECTOR, PATHS, SHAPES, SOLVERS, gaussian
from scipy import stats
from torch import Tensor

from scorefield.models import MLP, CountCalls, Denoiser
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, DiscreteVPSDE
from scorefield.solvers import (
    BELM,
    DDIM,
    DEIS,
    RK4,
    Adams,
    AdamsMoulton,
    Adaptive,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    Churn,
    ConsistentAnnealed,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    PerSampleNoise,
    PredictorCorrector,
    Progress,
    SASolver,
    Scales,
    Schedule,
    Solver,
    StochasticDPMSolver,
    Trajectory,
    UniPC,
    grids,
)
from scorefield.solvers.variables import SoftClippedLogSNR

EVERY = {name: case.solver for name, case in SOLVERS.items()}
KINDS = {name: case.solver for name, case in SOLVERS.items() if case.kind}
STOCHASTIC = {name: solver for name, solver in EVERY.items() if solver.stochastic}


def each(solvers: dict[str, Solver]) -> Any:
    return pytest.mark.parametrize("solver", solvers.values(), ids=solvers.keys())


every_solver = each(KINDS)


def of_every_solver(test: Callable[[Solver], None]) -> Callable[[], None]:
    """One test of all kinds of solvers, for what most of them share."""

    def run() -> None:
        for solver in KINDS.values():
            test(solver)

    run.__name__ = run.__qualname__ = test.__name__
    return run


every_path = pytest.mark.parametrize("path", ["vp", "edm", "ddpm-cosine"])


def half(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return 0.5 * x


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Arguments

NET = MLP((2,), width=8)
TIMES = grids.log_snr(VPSDE(), 4)
X = torch.zeros(3, 2)


@pytest.mark.parametrize("solver", [DDIM(), Adaptive(), AdaptiveSDE()], ids=["ddim", "adaptive", "sde"])
@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"ts": 20}, "expected a 1-D tensor of finite times, got 20: make one of 20 steps by grids.log_snr"),
        ({"ts": [1, 0.5]}, "finite times, got [1, 0.5]: make one of 20 steps by grids.log_snr(sde, 20)"),
        ({"ts": None}, "finite times, got None"),
        ({"ts": TIMES.numpy()}, "finite times, got ndarray (5,)"),
        ({"ts": grids.log_snr}, "finite times, got the function log_snr"),
        ({"ts": torch.zeros(1000, 2)}, "finite times, got a tensor (1000, 2) of float32"),
        ({"ts": TIMES * math.nan}, "finite times, got NaN or inf in a tensor (5,) of float64"),
        ({"sde": half, "denoiser": VPSDE()}, "expected a path such as VPSDE(), got the function half: pass it second"),
        ({"sde": VPSDE}, "expected a path such as VPSDE(), got the class VPSDE"),
        ({"denoiser": NET}, "got MLP, called with (x, c_noise, label, code): wrap a network, as Denoiser(net,"),
        ({"denoiser": torch.nn.Linear(2, 2)}, "got Linear, called with (input): wrap a network, as Denoiser(net,"),
        ({"denoiser": lambda x, t: x}, "called as D(x, alpha, sigma, **cond), got the function <lambda>, called with"),
        ({"denoiser": VPSDE()}, "got VPSDE(beta_min=0.1, beta_max=20.0"),
        ({"denoiser": Denoiser}, "got the class Denoiser: pass the denoiser first"),
        ({"cond": {"label": X[:, 0]}}, "(x, alpha, sigma) and got an unexpected keyword argument 'label': change cond"),
        ({"cond": X}, "expected cond as a dict, as {'label': label}, got a tensor (3, 2) of float32"),
        ({"x": X.tolist()}, "expected samples x as a tensor (B, *D), got [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]: use"),
        ({"x": X.numpy()}, "expected samples x as a tensor (B, *D), got ndarray (3, 2)"),
        ({"x": X.to(torch.complex64)}, "expected real samples, got torch.complex64: make two channels"),
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_is_named_in_one_line(solver: Solver, changed: dict[str, Any], line: str) -> None:
    given: dict[str, Any] = {"denoiser": half, "sde": VPSDE(), "x": X, "ts": TIMES, **changed}
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        solver(**given)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(ValueError, match=re.escape("... (1000 in all): sort them")) as caught:
        grids.sigmas(VESDE(), [1 + i / 1000 for i in range(1000)])
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=re.escape("... (1000 in all)")) as caught:
        DiscreteVPSDE([2.0] * 1000)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"steps to be at least 1, got 2\.5: give a whole number"):
        grids.log_snr(VPSDE(), 2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "adaptive_heun", "scipy:RK45", "scipy:LSODA", "sde"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_an_adaptive_solver_stops_at_its_limit_of_evaluations(method: str, per_sample: bool) -> None:
    limit: dict[str, Any] = {"per_sample": per_sample, "rtol": 1e-7, "atol": 1e-7, "max_evaluations": 50}
    solver: Solver = AdaptiveSDE(**limit) if method == "sde" else Adaptive(method, **limit)
    counted = CountCalls(half)
    with pytest.raises(ValueError, match=r"arrive within 50 evaluations, got \d+\.\d% of the way: take larger"):
        solver(counted, VPSDE(), normal(3, 2), TIMES)
    assert counted.calls <= 50 + 6 * per_sample  # those that compare a part of the batch with all
    assert repr(solver) == repr(dataclasses.replace(solver, max_evaluations=9))  # type: ignore[type-var]


# Grids


@pytest.mark.parametrize(("path", "steps"), [("vp", 1), ("ddpm-cosine", 37)])
@pytest.mark.parametrize("grid", [grids.uniform, grids.quadratic, grids.log_snr, grids.karras, grids.soft_clipped])
def test_grid_falls_from_exactly_t_max_to_exactly_t_min(path: str, grid: Any, steps: int) -> None:
    sde = PATHS[path]
    ts = grid(sde, steps)
    assert ts.shape == (steps + 1,)
    assert ts.dtype == torch.float64
    assert (float(ts[0]), float(ts[-1])) == (sde.t_max, sde.t_min)
    assert bool((ts.diff() < 0).all())


def test_uniform_and_quadratic_grids_are_their_formulas() -> None:
    sde, i = VPSDE(t_min=0.04, t_max=0.81), np.arange(11) / 10
    np.testing.assert_allclose(grids.uniform(sde, 10), 0.81 - 0.77 * i, rtol=1e-14)
    np.testing.assert_allclose(grids.quadratic(sde, 10), (0.9 - 0.7 * i) ** 2, rtol=1e-14)


@every_path
def test_log_snr_grid_has_equal_steps_in_log_snr(path: str) -> None:
    steps = PATHS[path].log_snr(grids.log_snr(PATHS[path], 50)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(50), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_karras_grid_is_equation_5(rho: float) -> None:
    n = 18
    i = np.arange(n)
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(grids.karras(EDMSDE(), n - 1, rho), sigma, rtol=1e-9)


@every_path
def test_karras_grid_is_equation_5_in_sigma_over_alpha_on_every_path(path: str) -> None:
    sde = PATHS[path]
    alpha, sigma = sde.scales(grids.karras(sde, 20))
    levels = (sigma / alpha).numpy()
    expected = np.linspace(levels[0] ** (1 / 7), levels[-1] ** (1 / 7), 21) ** 7
    np.testing.assert_allclose(levels, expected, rtol=1e-6)


@every_path
def test_sigmas_grid_has_the_levels_asked_for(path: str) -> None:
    levels = [20.0, 4.0, 3.0, 0.1, 0.05]
    alpha, sigma = PATHS[path].scales(grids.sigmas(PATHS[path], levels))
    np.testing.assert_allclose(sigma / alpha, levels, rtol=1e-8)


@pytest.mark.parametrize(
    ("levels", "words"),
    [([60.0, 1.0], "within"), ([1.0, 0.001], "within"), ([1.0, 2.0], "fall"), ([1.0, 1.0], "fall"), ([], "within")],
)
def test_sigmas_grid_refuses_levels_off_the_path_or_not_falling(levels: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grids.sigmas(VESDE(0.01, 50.0), levels)


@pytest.mark.parametrize("steps", [1, 20, 1000])
def test_leading_and_trailing_grids_are_diffusers_timesteps(steps: int) -> None:
    # DDIMScheduler(steps_offset=0).set_timesteps, in numpy as it is there; timestep k is the time (k + 1) / 1000, at
    # which the path has that timestep's alpha-bar.
    sde = DiscreteVPSDE("linear")
    leading = (np.arange(0, steps) * (1000 // steps)).round()[::-1].astype(np.int64)
    trailing = np.round(np.arange(1000, 0, -1000 / steps)).astype(np.int64) - 1
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for ts, timesteps in ((grids.leading(sde, steps), leading), (grids.trailing(sde, steps), trailing)):
        np.testing.assert_allclose(ts, (timesteps + 1) / 1000, rtol=1e-14)
        np.testing.assert_allclose(sde.scales(ts)[0].square(), bar[timesteps], rtol=1e-9)


@pytest.mark.parametrize("steps", [7, 999])
def test_trailing_grid_is_diffusers_where_steps_do_not_divide(steps: int) -> None:
    trailing = np.round(np.arange(1000, 0, -1000 / steps)).astype(np.int64)[:steps]
    np.testing.assert_allclose(grids.trailing(VPSDE(), steps), trailing / 1000, rtol=1e-14)


@pytest.mark.parametrize("of", [1000, 100])
def test_linspace_grid_is_diffusers_timesteps(of: int) -> None:
    # EulerDiscreteScheduler and DDIMScheduler(timestep_spacing="linspace"), in numpy as it is there; but for one step,
    # which there is the first timestep and here the last.
    for steps in range(2, of + 1):
        timesteps = np.linspace(0, of - 1, steps).round()[::-1].astype(np.int64)
        np.testing.assert_allclose(grids.linspace(VPSDE(), steps, of), (timesteps + 1) / of, rtol=1e-14)
    assert grids.linspace(VPSDE(), 1).tolist() == [1.0]


@every_path
@pytest.mark.parametrize(("low", "high"), [(0.05, 5.0)])
def test_soft_clipped_grid_has_equal_steps_in_its_formula(path: str, low: float, high: float) -> None:
    alpha, sigma = PATHS[path].scales(grids.soft_clipped(PATHS[path], 50, low, high))
    n = (sigma / alpha).numpy()
    steps = np.diff(-2 * np.log((n + low) / (1 + n / high)))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_soft_clipped_grid_refuses_ends_that_are_none(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        grids.soft_clipped(VPSDE(), 5, low, high)


@pytest.mark.parametrize(
    "name", ["uniform", "quadratic", "log_snr", "karras", "soft_clipped", "leading", "trailing", "linspace"]
)
@pytest.mark.parametrize("steps", [0])
def test_grid_of_no_steps_is_refused(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1.*got {steps}"):
        getattr(grids, name)(VPSDE(), steps)


@pytest.mark.parametrize("grid", [grids.leading, grids.trailing, grids.linspace])
def test_more_timesteps_than_there_are_is_refused(grid: Any) -> None:
    with pytest.raises(ValueError, match="at most 1000"):
        grid(VPSDE(), 1001)


# What is refused


@pytest.mark.parametrize("ways", ["stochastic", "both"])
def test_a_stochastic_solver_refuses_a_rising_grid_and_any_other_encodes_without_noise(ways: str) -> None:
    def no_noise(x: Tensor) -> Tensor:
        raise AssertionError("asked for noise")

    up, stochastic = grids.uniform(VPSDE(), 5).flip(0), ways == "stochastic"
    names = [name for name, solver in EVERY.items() if solver.stochastic is stochastic]
    first = names.index("ddim-0.5" if stochastic else "ddim")
    assert first == 0
    assert (len(names) > 15, "em" in names, "abm4" in names) == (True, stochastic, not stochastic)
    for solver in map(EVERY.__getitem__, names):
        if not stochastic:
            assert bool(solver(half, VPSDE(), torch.ones(2, 2), up, noise=no_noise).isfinite().all())
            continue
        with pytest.raises(ValueError, match=r"rising one.*DDIM\(\), Heun\(\) or Adaptive\(\)") as caught:
            solver(half, VPSDE(), torch.ones(2, 2), up)
        assert type(solver).__name__ in str(caught.value)


BAD_GRIDS = {
    "turns": ([0.9, 0.5, 0.7], "turns"),
    "turns upwards": ([0.5, 0.7, 0.6], "turns"),
    "repeats": ([0.9, 0.5, 0.5, 0.1], "repeats"),
    "nan": ([0.9, math.nan, 0.1], "finite"),
    "infinite": ([math.inf, 0.1], "finite"),
    "above": ([1.1, 0.5], "within"),
    "below": ([0.5, 0.0], "within"),
    "negative": ([0.5, -0.1], "within"),
    "two-dimensional": ([[0.9, 0.5], [0.5, 0.1]], "1-D"),
    "empty": ([], "1-D"),
}


@each({name: EVERY[name] for name in ("ddim", "dopri5", "ncsn")})
@pytest.mark.parametrize("grid", BAD_GRIDS)
def test_grid_that_is_not_one_is_refused(solver: Solver, grid: str) -> None:
    times, words = BAD_GRIDS[grid]
    with pytest.raises(ValueError, match=words):
        solver(half, VPSDE(), torch.ones(2, 2), torch.tensor(times))


@of_every_solver
def test_grid_of_one_time_is_refused_but_by_langevin_which_stays_there(solver: Solver) -> None:
    ts = torch.tensor([0.5])
    if isinstance(solver, AnnealedLangevin):
        assert solver(half, VPSDE(), torch.ones(2, 2), ts).shape == (2, 2)
    else:
        with pytest.raises(ValueError, match="at least two times"):
            solver(half, VPSDE(), torch.ones(2, 2), ts)


def test_grid_in_float32_is_taken_at_its_ends() -> None:
    # float32 rounds 1e-5 and 0.999 past the ends by its own precision, which is forgiven.
    for sde in PATHS.values():
        ts = grids.uniform(sde, 10).float()
        assert bool(DDIM()(half, sde, torch.ones(2, 2), ts).isfinite().all())


@pytest.mark.parametrize(
    "name",
    ["ddim", "heun-sigma", "dpm2m-eps", "cas", "churn", "sabm3", "ncsn"],
)
def test_what_is_forgiven_at_the_ends_does_not_reach_sigma_zero(name: str) -> None:
    # A millionth of [1e-5, 80] is more than 1e-5: an end at 0 is forgiven, and must then be the path's own end.
    sde = EDMSDE(t_min=1e-5)
    x = EVERY[name](half, sde, torch.ones(2, 2), torch.tensor([80.0, 1.0, 0.0]))
    assert bool(x.isfinite().all())


REFUSED: list[tuple[Any, str]] = [
    (lambda: DDIM(eta=2.0), r"eta within \[0, 1\], got 2"),
    (lambda: DDIM(eta=-0.1), "eta"),
    (lambda: DDIM(eta=math.nan), "eta"),
    (lambda: DPMSolver(order=4), "order 1 to 3.*got 4"),
    (lambda: DPMSolver(order=0), "order 1 to 3"),
    (lambda: DPMSolver(predict="noise"), "'x0' or 'eps'.*'noise'"),
    (lambda: DPMSolver(order=2.5), "order 1 to 3"),
    (lambda: UniPC(0), "order 1 to 3.*got 0"),
    (lambda: UniPC(4), "order 1 to 3.*got 4"),
    (lambda: UniPC(predict="v"), "'x0' or 'eps'.*'v'"),
    (lambda: UniPC(variant="bh3"), "'bh1' or 'bh2', got 'bh3'"),
    (lambda: DEIS(0), "order 1 to 3"),
    (lambda: DEIS(4), "order 1 to 3"),
    (lambda: DEIS(variable="hours"), "variable.*time, sigma, log_snr, soft_clipped.*'hours'"),
    (lambda: Adams(0), "order 1 to 4"),
    (lambda: Adams(5), "order 1 to 4.*got 5"),
    (lambda: Adams(predict="x"), "'x0' or 'eps'"),
    (lambda: Adams(variable="hours"), "variable.*'hours'"),
    (lambda: SASolver(5), "order 1 to 4"),
    (lambda: SASolver(tau=0.0), r"positive tau, got 0.0: for none use Adams\(3\)"),
    (lambda: SASolver(tau=-1.0), "positive tau"),
    (lambda: SASolver(tau=math.inf), "positive tau"),
    (lambda: SASolver(tau=math.nan), "positive tau"),
    (lambda: StochasticDPMSolver(4), "order 1 to 3"),
    (lambda: StochasticDPMSolver(0), "order 1 to 3"),
    (lambda: StochasticDPMSolver(eta=0.0), r"positive eta, got 0.0: for none use DPMSolver\(2\)"),
    (lambda: StochasticDPMSolver(eta=-0.5), "positive eta"),
    (lambda: StochasticDPMSolver(eta=math.inf), "positive eta"),
    *((lambda make=make: make("hours"), "variable.*'hours'") for make in (Euler, Midpoint, Heun, RK4)),
    (lambda: Adaptive(variable="hours"), "variable.*'hours'"),
    (lambda: AdaptiveSDE(variable="hours"), "variable.*'hours'"),
    (lambda: AdaptiveSDE(rtol=0.0), "positive"),
    (lambda: AdaptiveSDE(atol=-1.0), "positive"),
    (lambda: AdaptiveSDE(first=0.0), "positive"),
    (lambda: AdaptiveSDE(exponent=0.0), "positive"),
    (lambda: AdaptiveSDE(safety=1.5), "safety"),
    (lambda: AdaptiveSDE(rtol=math.nan), "positive"),
    (lambda: Ancestral("medium"), "'small' or 'large', got 'medium'"),
    (lambda: ConsistentAnnealed(eta=0.0), r"eta within \(0, 1\]"),
    (lambda: ConsistentAnnealed(eta=1.5), r"eta within \(0, 1\]"),
    (lambda: Churn(amount=-1.0), "0 or more"),
    (lambda: Churn(noise=-1.0), "0 or more"),
    (lambda: Churn(amount=math.nan), "0 or more"),
    *(
        (lambda inner=inner: Churn(solver=inner), "deterministic one-step solver")
        for inner in (DPMSolver(), DDIM(eta=1.0), UniPC(), DEIS(), Adams(), BELM(), EulerMaruyama(), AdaptiveSDE())
    ),
    *(
        (lambda inner=inner: PredictorCorrector(inner, CORRECTOR), "a corrector has moved")
        for inner in (UniPC(), Adams(), SASolver(), BELM())
    ),
    *(
        (lambda inner=inner: PredictorCorrector(inner, CORRECTOR), "a corrector has moved")
        for inner in (AnnealedLangevin(), CORRECTOR, PredictorCorrector(DDIM(), CORRECTOR))
    ),
    (lambda: PredictorCorrector(AdaptiveSDE(), CORRECTOR), r"a corrector has moved.*EulerMaruyama\(\)"),
    (lambda: PredictorCorrector(DDIM(), CORRECTOR, order="both"), "'predict_first' or 'correct_first', got 'both'"),
    (lambda: AdamsMoulton(5), "order 1 to 4, got 5"),
    (lambda: AdamsMoulton(variable="hours"), "variable.*'hours'"),
    (lambda: SoftClippedLogSNR(spread=0.0), "positive spread"),
    (lambda: Adaptive("rk4"), "dopri5.*scipy:RK45.*'rk4'"),
    (lambda: Adaptive("scipy:dopri5"), "scipy:RK45.*'scipy:dopri5'"),
    (lambda: Adaptive("RK45"), "scipy:RK45.*'RK45'"),
    (lambda: Adaptive(rtol=-1e-3), "tol"),
    (lambda: Adaptive(rtol=0.0, atol=0.0), "tol"),
    (lambda: AnnealedLangevin(steps=0), "at least 1.*got 0"),
    (lambda: AnnealedLangevin(norms="bach"), "expected, sample, batch, got 'bach'"),
    (lambda: AnnealedLangevin(step_size=-1e-5), "step_size"),
    (lambda: AnnealedLangevin(step_size=0.0), "step_size"),
    (lambda: AnnealedLangevin(snr=-0.1), "snr"),
    (lambda: AnnealedLangevin(snr=math.nan), "snr"),
]


def test_setting_that_cannot_work_is_refused_when_it_is_made() -> None:
    for make, words in REFUSED:
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.parametrize("grid", [grids.uniform, grids.log_snr])
def test_consistent_annealed_sampling_refuses_a_grid_whose_steps_are_too_large_for_its_eta(grid: Any) -> None:
    with pytest.raises(ValueError, match=r"remove at most 0.01 of the noise.*eta=None"):
        ConsistentAnnealed(eta=0.01)(half, VPSDE(), torch.ones(2, 2), grid(VPSDE(), 20))
    fine = grids.log_snr(VPSDE(), 2000)  # steps of 0.6 %
    assert bool(ConsistentAnnealed(eta=0.01)(half, VPSDE(), torch.ones(2, 2), fine).isfinite().all())


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("after", [0, 7])
def test_adaptive_sde_gives_up_on_a_network_that_is_not_finite(per_sample: bool, after: int) -> None:
    calls = 0

    def breaks(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert calls < 1000
        return 0.5 * x if calls <= after else torch.full_like(x, math.nan)

    with pytest.raises(ValueError, match=r"meets the tolerance.*NaN"):
        AdaptiveSDE(per_sample=per_sample)(breaks, VPSDE(), normal(2, 2), grids.log_snr(VPSDE(), 3))


def test_adaptive_sde_gives_up_when_no_step_is_small_enough() -> None:
    def rough(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1e9 * torch.sin(1e12 * x)

    with pytest.raises(ValueError, match="meets the tolerance"):
        AdaptiveSDE(1e-9, 1e-12)(rough, VPSDE(), normal(2, 2), grids.log_snr(VPSDE(), 3))


@of_every_solver
def test_solver_is_frozen_comparable_and_says_its_settings(solver: Solver) -> None:
    twin = dataclasses.replace(solver)  # type: ignore[type-var]
    assert solver == twin
    assert hash(solver) == hash(twin)
    assert repr(solver) == repr(twin)
    assert sum(solver == other for other in EVERY.values()) == 1
    for field in dataclasses.fields(solver):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solver, field.name, None)


# What comes back


@every_solver
@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, SHAPES[2]), (torch.float64, SHAPES[0])])
def test_any_callable_is_a_denoiser_and_shape_and_dtype_are_kept(
    solver: Solver, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    sde, start = VPSDE(), normal(1, *shape).to(dtype)
    kept = start.clone()
    x = solver(lambda x, alpha, sigma: 0.5 * x, sde, start, grids.log_snr(sde, 5))
    assert (x.shape, x.dtype) == (start.shape, dtype)
    assert bool(x.isfinite().all())
    assert torch.equal(start, kept)


@of_every_solver
def test_batch_of_none_comes_back_empty(solver: Solver) -> None:
    # What is left of a set that divides evenly into chunks.
    assert solver(half, VPSDE(), torch.ones(0, 2), grids.log_snr(VPSDE(), 5)).shape == (0, 2)


@every_solver
@pytest.mark.parametrize("shape", [(2, 5)])
def test_same_seed_gives_the_same_images_whatever_the_batch(solver: Solver, shape: tuple[int, ...]) -> None:
    # To the bit: with an elementwise denoiser in float64, nothing that is computed of a sample may depend on its mates.
    sde, model, n = PATHS["vp"], gaussian(shape), 4
    ts = grids.log_snr(sde, 6)

    def made(indices: range) -> Tensor:
        noise = PerSampleNoise(5, indices)
        x = sde.prior((len(indices), *shape), noise=noise, dtype=torch.float64)
        return solver(model, sde, x, ts, noise=noise)

    whole = made(range(n))
    for size in (1, 3):
        chunks = [made(range(n)[i : i + size]) for i in range(0, n, size)]
        assert torch.equal(torch.cat(chunks), whole)
    assert torch.equal(made(range(n)), whole)
    assert len(whole.flatten(1).unique(dim=0)) == n


@every_solver
def test_progress_is_told_once_a_step(solver: Solver) -> None:
    sde, ts = VPSDE(), grids.log_snr(VPSDE(), 5)
    seen = list[Progress]()
    end = solver(half, sde, normal(3, 2), ts, on_step=seen.append)
    if isinstance(solver, AdaptiveSDE) or getattr(solver, "method", None) in ("dopri5", "bosh3"):
        # Whenever some row has taken a step: `step` rows have arrived.
        steps, arrived = len(seen), [progress.step for progress in seen]
        assert arrived == sorted(arrived)
        assert arrived[-1] == 3
        assert {(progress.steps, progress.x.shape) for progress in seen} == {(3, (3, 2))}
        assert all(math.isnan(progress.t) for progress in seen)  # each row is at a time of its own
        assert torch.equal(seen[-1].x, end)
        return
    if isinstance(solver, Adaptive):  # once a sample: it goes from end to end
        steps, times, rows = 3, [math.nan] * 3, 1
    elif isinstance(solver, AnnealedLangevin):  # once a level, the first among them
        steps, times, rows = 6, ts.tolist(), 3
    else:
        steps, times, rows = 5, ts[1:].tolist(), 3
    assert [progress.step for progress in seen] == list(range(1, steps + 1))
    assert {progress.steps for progress in seen} == {steps}
    np.testing.assert_array_equal([progress.t for progress in seen], times)
    assert {progress.x.shape for progress in seen} == {(rows, 2)}
    last = torch.cat([progress.x for progress in seen]) if isinstance(solver, Adaptive) else seen[-1].x
    if isinstance(solver, AnnealedLangevin) and solver.denoise:
        last = half(last, *sde.scales(ts[-1]))
    torch.testing.assert_close(last, end, rtol=0, atol=0)


@of_every_solver
def test_trajectory_is_kept_or_refused(solver: Solver) -> None:
    sde, ts, path = VPSDE(), grids.log_snr(VPSDE(), 5), Trajectory(rows=2)
    if isinstance(solver, Adaptive | AdaptiveSDE):
        with pytest.raises(ValueError, match="on a fixed grid"):
            solver(half, sde, normal(3, 2), ts, on_step=path)
    else:
        solver(half, sde, normal(3, 2), ts, on_step=path)
        assert path.x.shape == path.x0.shape == (len(path.t), 2, 2)
        assert bool(path.x0.isfinite().all())


@of_every_solver
def test_answers_of_another_dtype_become_that_of_x(solver: Solver) -> None:
    # As a denoiser's own do that reckons with its float64 scales in tensors of one dimension or more.
    def promoting(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return x * (alpha / (alpha**2 + sigma**2)).reshape(-1, 1)

    sde = VPSDE()
    x = solver(promoting, sde, normal(3, 2).float(), grids.log_snr(sde, 5))
    assert x.dtype == torch.float32


@of_every_solver
def test_answers_of_another_shape_and_samples_of_integers_are_refused(solver: Solver) -> None:
    sde, ts = VPSDE(), grids.log_snr(VPSDE(), 5)
    with pytest.raises(ValueError, match=r"shape of x, \(\d, 2\), got \(\d, 1\)"):
        solver(lambda x, alpha, sigma: x[:, :1], sde, normal(3, 2), ts)
    with pytest.raises(ValueError, match="floating-point samples"):
        solver(half, sde, torch.ones(3, 2, dtype=torch.int64), ts)


@each({n: EVERY[n] for n in ("dopri5", "scipy-rk45", "adaptive-sde")} | {"shared": Adaptive(per_sample=False)})
def test_adaptive_solvers_end_on_nan(solver: Solver) -> None:
    sde = VPSDE()
    with pytest.raises(ValueError, match="NaN"):
        solver(lambda x, alpha, sigma: x * torch.nan, sde, normal(2, 2), grids.log_snr(sde, 5))


@pytest.mark.parametrize(
    "inner", [Heun(), RK4("log_snr"), Midpoint(), DPMSolver(multistep=False), DPMSolver(3, multistep=False)], ids=repr
)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: Churn(solver=s), lambda s: PredictorCorrector(s, CORRECTOR)])
def test_scales_go_to_the_device_before_the_loop_and_not_within(inner: Solver, wrap: Any, monkeypatch: Any) -> None:
    # A copy to a GPU waits for it. However many steps, there are as many copies.
    copies = list[int]()
    original = Schedule._on_device

    def counting(self: Schedule, host: Scales) -> Scales:
        copies[-1] += 1
        return original(self, host)

    monkeypatch.setattr(Schedule, "_on_device", counting)
    for steps in (3, 9):
        copies.append(0)
        wrap(inner)(half, VPSDE(), normal(2, 2), grids.log_snr(VPSDE(), steps))
    assert copies[0] == copies[1] <= 5


@pytest.mark.parametrize("order", ["predict_first", "correct_first"])
@pytest.mark.parametrize(
    "predictor", [DPMSolver(3), DEIS(), Adams(3, corrector=False), Adams(4, corrector=False)], ids=repr
)
def test_a_corrector_is_not_undone_by_a_predictor_that_starts_with_care(predictor: Solver, order: str) -> None:
    # What it adds at any level is still there at the end.
    sde, x = VPSDE(), normal(1, 2)
    ts = grids.log_snr(sde, 40)
    solver = PredictorCorrector(predictor, CORRECTOR, order)

    def end(loud: int) -> Tensor:
        calls = iter(range(100))
        return solver(half, sde, x, ts, noise=lambda like: torch.full_like(like, float(next(calls) == loud)))

    for level in range(5):
        assert float((end(level) - end(-1)).abs().max()) > 1e-6


def test_consistent_annealing_is_refused_before_any_work() -> None:
    counted, sde = CountCalls(half), VPSDE()
    with pytest.raises(ValueError, match="take more steps"):
        ConsistentAnnealed(0.5)(counted, sde, normal(2, 2), grids.uniform(sde, 50))  # only its last step is too long
    assert counted.calls == 0


class Recorded:
    """A denoiser that keeps what it was asked and what it said; `noise` answers for itself where asked to."""

    def __init__(self, model: Any) -> None:
        self.model, self.said = model, list[Tensor]()

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        self.said.append(self.model(x, alpha, sigma))
        return self.said[-1]


class RecordedNoise(Recorded):
    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        self.said.append(self.model(x, alpha, sigma))
        return self.model.noise(x, alpha, sigma)


@every_solver
def test_progress_has_the_denoisers_last_answer(solver: Solver) -> None:
    for kind in (Recorded, RecordedNoise):
        last_answer(solver, kind)


def last_answer(solver: Solver, kind: type[Recorded]) -> None:
    sde, recorded = VPSDE(), kind(gaussian((2,)))
    seen = list[tuple[Progress, Tensor]]()
    x = normal(3, 2)
    end = solver(recorded, sde, x, grids.log_snr(sde, 5), noise=PerSampleNoise(0, range(3)),
                 on_step=lambda progress: seen.append((progress, recorded.said[-1])))  # fmt: skip
    assert seen
    for progress, said in seen:
        assert (progress.x0 is None) is (said.shape != progress.x.shape)  # some rows' answers say nothing of the others
        if progress.x0 is None:
            continue
        # x0 from the noise: x - sigma eps over alpha, which is 0.007 at the end of this path, loses three digits.
        torch.testing.assert_close(progress.x0, said, rtol=1e-9, atol=1e-9)
    silent = solver(kind(gaussian((2,))), sde, x, grids.log_snr(sde, 5), noise=PerSampleNoise(0, range(3)))
    assert torch.equal(end, silent)  # to be watched changes nothing


@each({name: solver for name, solver in STOCHASTIC.items() if not SOLVERS[name].kind})
def test_image_of_a_seed_is_the_same_alone_and_among_16(solver: Solver) -> None:
    sde, model = PATHS["vp"], gaussian((2,))
    ts = grids.log_snr(sde, 4)

    def made(indices: list[int]) -> Tensor:
        noise = PerSampleNoise(9, indices)
        x = sde.prior((len(indices), 2), noise=noise, dtype=torch.float64)
        return solver(model, sde, x, ts, noise=noise)

    whole = made(list(range(16)))
    for part in ([0], [9], [9, 3, 15]):
        assert torch.equal(made(part), whole[part])
    assert len(whole.unique(dim=0)) == 16


# Counting


@each({name: EVERY[name] for name in ("ddim", "heun", "dpm3s-x0", "abm4")})
def test_count_is_what_the_solver_asked(solver: Solver) -> None:
    counted, recorded = CountCalls(half), Recorded(half)
    for denoiser in (counted, recorded):
        solver(denoiser, VPSDE(), normal(3, 2), grids.log_snr(VPSDE(), 6))
    assert counted.calls == len(recorded.said)
    assert counted.samples == 3 * counted.calls


@each({name: solver for name, solver in KINDS.items() if not name.startswith("scipy")})
def test_gradients_flow_when_x_asks_for_them(solver: Solver) -> None:
    # For a Gaussian a step is affine, so the derivative is a difference, of any size, with the same noise. Norms that
    # are measured, and steps that adapt, bend it: there the difference is a small one, and good to the tolerance.
    sde, model = VPSDE(), gaussian((2,))
    ts, x = grids.log_snr(sde, 5), normal(2, 2)
    h, adaptive = 1e-6, "Adaptive" in repr(solver)

    def run(x: Tensor) -> Tensor:
        return solver(model, sde, x, ts, noise=PerSampleNoise(0, range(len(x))))

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(leaf)[:, 0].sum(), leaf)
    if "AdaptiveSDE" in repr(solver):  # its steps' sizes depend on x, and enter the differences but not the gradient
        assert bool(grad.isfinite().all())
        assert bool((grad[:, 0] != 0).all())
        return
    push = torch.tensor([h, 0.0], dtype=torch.float64)
    difference = (run(x + push) - run(x - push))[:, 0] / (2 * h)
    torch.testing.assert_close(grad[:, 0], difference, rtol=1e-2 if adaptive else 1e-5, atol=1e-7)


def test_scipy_refuses_gradients_rather_than_losing_them() -> None:
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="gradient"):
        Adaptive("scipy:RK45")(half, VPSDE(), x, grids.log_snr(VPSDE(), 5))


@of_every_solver
def test_no_graph_is_kept_unless_x_asks_for_one(solver: Solver) -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = solver(lambda x, alpha, sigma: weight * x, VPSDE(), normal(2, 2), grids.log_snr(VPSDE(), 3))
    assert not x.requires_grad
    with torch.no_grad():
        asks = normal(2, 2).requires_grad_()
        assert not solver(half, VPSDE(), asks, grids.log_snr(VPSDE(), 3)).requires_grad
    assert torch.is_grad_enabled()


@every_solver
def test_solver_works_in_inference_mode_and_gives_the_same(solver: Solver) -> None:
    sde, model = VPSDE(), gaussian((2,))

    def made() -> Tensor:
        x = sde.prior((2, 2), noise=PerSampleNoise(0, range(2)), dtype=torch.float64)
        return solver(model, sde, x, grids.log_snr(sde, 4), noise=PerSampleNoise(1, range(2)))

    with torch.inference_mode():
        inside = made()
    assert torch.equal(inside.clone(), made())


@pytest.mark.parametrize("path", ["ddpm-cosine"])
@pytest.mark.parametrize(
    "solver",
    [
        Heun(),
        RK4("sigma"),
        DPMSolver(multistep=False),
        UniPC(),
        EulerMaruyama(),
        Churn(),
        AdaptiveSDE(rtol=0.2, atol=0.05),
        Adaptive(rtol=1e-2, atol=1e-2),
    ],
    ids=repr,
)
def test_a_path_first_used_in_inference_mode_works_there_and_afterwards(path: str, solver: Solver) -> None:
    # A path may keep what it has computed; kept inference tensors would be of no use to whoever differentiates later.
    sde: SDE = dataclasses.replace(PATHS[path])  # type: ignore[type-var]
    with torch.inference_mode():
        x = sde.prior((1, 2), dtype=torch.float64)
        x = solver(half, sde, x, grids.log_snr(sde, 3))
        assert bool(x.isfinite().all())
    sde.drift(0.5)
    leaf = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    solver(half, sde, leaf, grids.log_snr(sde, 3)).sum().backward()
    assert leaf.grad is not None


@of_every_solver
def test_default_noise_follows_the_global_seed(solver: Solver) -> None:
    ts = grids.log_snr(VPSDE(), 3)
    ends = list[Tensor]()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ends.append(solver(half, VPSDE(), torch.ones(2, 2), ts))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2]) is not solver.stochastic


# Noise of one's own


@pytest.mark.parametrize(
    ("dtype", "values"), [(torch.float32, 500), (torch.float64, 5)]
)  # torch fills fewer than sixteen another way
def test_noise_is_standard_normal_and_its_streams_are_strangers(dtype: torch.dtype, values: int) -> None:
    # Kolmogorov-Smirnov over all draws: a false alarm in 1 of 1000 seeds. Correlations of all 2016 pairs of 64 streams,
    # and of neighbours within one, beyond 5 standard errors: 1 of 900.
    noise = PerSampleNoise(0, range(64))
    blank = torch.empty(64, values, dtype=dtype)
    draws = torch.cat([noise(blank) for _ in range(2500 // values)], 1).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(draws.numpy())[np.triu_indices(64, 1)]
    assert float(np.abs(correlation).max()) < 5 / math.sqrt(2500)
    along = (draws[:, 1:] * draws[:, :-1]).mean()
    assert abs(float(along)) < 5 / math.sqrt(draws.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_noise_is_uniform_within_0_and_1(dtype: torch.dtype) -> None:
    draws = PerSampleNoise(0, range(64)).uniform(torch.empty(64, 500, dtype=dtype))
    assert draws.dtype == dtype
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert stats.kstest(draws.flatten().double().numpy(), "uniform").pvalue > 1e-3  # a false alarm in 1 of 1000 seeds


def test_noise_goes_on_in_each_samples_stream() -> None:
    blank, noise, again = torch.empty(3, 40), PerSampleNoise(0, range(3)), PerSampleNoise(0, range(3))
    first, second, third = noise(blank), noise.uniform(blank), noise(blank)
    assert not torch.equal(first, third)
    for expected, got in ((first, again(blank)), (second, again.uniform(blank)), (third, again(blank))):
        assert torch.equal(expected, got)
    alone = PerSampleNoise(0, [1])
    assert torch.equal(torch.cat([alone(blank[:1]), alone.uniform(blank[:1])]), torch.stack([first[1], second[1]]))


def test_every_seed_and_index_has_a_stream_of_its_own() -> None:
    streams = [PerSampleNoise(seed, range(100))(torch.empty(100, 4)) for seed in (0, 1, 2, 2**31, 2**40)]
    assert len(torch.cat(streams).unique(dim=0)) == 500


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_noise_for_another_batch_size_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"expected a batch of 3.*got {rows}"):
        PerSampleNoise(0, range(3))(torch.empty(rows, 2))


def test_noise_asks_for_no_gradient_and_leaves_x_alone() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    noise = PerSampleNoise(0, range(2))(x)
    assert not noise.requires_grad
    assert torch.equal(x.detach(), torch.ones(2, 3))


@pytest.mark.parametrize("source", ["__call__", "uniform"])
def test_noise_does_not_depend_on_how_x_lies_in_memory(source: str) -> None:
    # A network in channels_last, or a transposed batch (of which a batch of one is contiguous again), must not change
    # what a seed means.
    def drawn(x: Tensor) -> Tensor:
        return getattr(PerSampleNoise(0, range(len(x))), source)(x)

    plain = torch.empty(4, 3, 8, 8)
    assert torch.equal(drawn(plain.to(memory_format=torch.channels_last)), drawn(plain))
    assert torch.equal(drawn(torch.empty(32, 4).T), drawn(torch.empty(4, 32)))
    assert torch.equal(drawn(torch.empty(32, 4).T[:1]), drawn(torch.empty(4, 32))[:1])


def test_refusal_names_the_path() -> None:
    with pytest.raises(ValueError, match=re.escape("within [1e-05, 1] of VPSDE, got 0.5 to 1.1")):
        DDIM()(half, VPSDE(), torch.ones(2, 2), torch.tensor([1.1, 0.5], dtype=torch.float64))
