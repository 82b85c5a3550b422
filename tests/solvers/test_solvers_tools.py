"""What stands around the solvers: measured grids, kept trajectories, the embedded pairs of adaptive steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import PATHS, gaussian
from torch import Tensor

from scorefield.configs import build
from scorefield.models import CountCalls, GaussianMixture
from scorefield.sde_lib import VPSDE
from scorefield.solvers import (
    DDIM,
    Adams,
    Adaptive,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PerSampleNoise,
    Progress,
    Trajectory,
    UniPC,
    grids,
    step_density,
)
from scorefield.solvers.ode.adaptive_rk import PAIRS, Pair, adaptive_rk

every_path = pytest.mark.parametrize("path", ["vp", "ddpm-cosine"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Measured grids


def test_density_is_that_of_the_denoisers_change() -> None:
    # D = tanh(l) wherever x is (l half the log-SNR): its derivative is sech^2 l, and two trajectories keep apart in
    # proportion to n = e^-l, so J = n_end / n, and the density at order 1 goes with sqrt(e^l sech^2 l).
    sde = VPSDE()

    def denoiser(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh((alpha / sigma).log()).expand_as(x)

    measured = step_density(denoiser, sde, sde.prior((32, 3), dtype=torch.float64), order=1, steps=400)
    l = np.array(measured.log_snr) / 2  # noqa: E741
    exact = np.sqrt(np.exp(l) / np.cosh(l) ** 2)
    seen = np.array(measured.density) > 0.15  # above the floor
    assert seen.sum() > 200
    # The smoothing, of width w = 0.43 in l, changes it by w^2 / 2 f''/f, which for f = e^(l/2) sech l is -7 % to +21 %.
    assert np.ptp(np.log(np.array(measured.density) / exact)[seen]) < 0.35


@every_path
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_optimal_grid_falls_from_end_to_end_with_the_density_asked_for(path: str, steps: int) -> None:
    sde = PATHS[path]
    low, high = (float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min))
    knots = torch.linspace(low, high, 50, dtype=torch.float64)
    measured = grids.StepDensity(tuple(knots.tolist()), tuple(((knots > 0).double() * 2 + 1).tolist()))
    ts = grids.optimal(sde, steps, measured)
    assert (float(ts[0]), float(ts[-1])) == (sde.t_max, sde.t_min)
    assert ts.shape == (steps + 1,)
    assert bool((ts.diff() < 0).all())
    if steps == 17:  # three times as many to a unit of log-SNR above nought
        widths = sde.log_snr(ts).diff()
        middles = (sde.log_snr(ts)[1:] + sde.log_snr(ts)[:-1]) / 2
        coarse, fine = widths[middles < -1.5].median(), widths[middles > 1.5].median()
        assert float(coarse / fine) == pytest.approx(3.0, rel=0.02)


def test_a_uniform_density_is_the_log_snr_grid() -> None:
    sde = VPSDE()
    ts = grids.optimal(sde, 20, grids.StepDensity((-5.0, 5.0), (1.0, 1.0)))
    torch.testing.assert_close(ts, grids.log_snr(sde, 20), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dims", [2])
def test_optimal_grid_beats_the_log_snr_grid_on_the_model_it_was_measured_on(dims: int) -> None:
    # Ten narrow modes, whose denoiser changes in a few places; measured on other trajectories than it is tried on. At
    # 50 steps it was seen to be 1.3 to 3 times better; at 15 the two are no series' leading terms, and either may win.
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand(10, dims, generator=generator, dtype=torch.float64) - 1
    stds = 0.05 + 0.15 * torch.rand(10, generator=generator, dtype=torch.float64)
    model, sde = GaussianMixture(means, stds, torch.ones(10).double()), VPSDE()
    measured = step_density(model, sde, normal(32, dims, seed=1))
    x = normal(32, dims, seed=2)
    exact = Adams(4)(model, sde, x, grids.log_snr(sde, 800))
    for solver in (DPMSolver(), UniPC(2)):
        plain, better = (
            float((solver(model, sde, x, ts) - exact).norm())
            for ts in (grids.log_snr(sde, 50), grids.optimal(sde, 50, measured))
        )
        assert better < plain / 1.2, (solver, plain, better)


def test_density_refuses_what_it_cannot_measure() -> None:
    sde = VPSDE()
    with pytest.raises(ValueError, match="changes along"):
        step_density(lambda x, alpha, sigma: torch.zeros_like(x), sde, normal(4, 2))
    with pytest.raises(ValueError, match="changes along"):
        step_density(lambda x, alpha, sigma: x * torch.nan, sde, normal(4, 2))
    with pytest.raises(ValueError, match="at least 2 trajectories"):
        step_density(gaussian((2,)), sde, normal(1, 2))
    with pytest.raises(ValueError, match="of 16 steps"):
        step_density(gaussian((2,)), sde, normal(4, 2), steps=5)


def test_measured_grid_is_read_from_its_file_and_refused_where_it_is_not_there(tmp_path: Path) -> None:
    sde = VPSDE()
    measured = grids.StepDensity((-5.0, 0.0, 5.0), (1.0, 3.0, 1.0))
    (tmp_path / "grid.json").write_text(json.dumps(measured._asdict()))
    ts = build.build(build.GRIDS, {"name": "optimal"}, sde=sde, steps=9, workdir=tmp_path)
    assert torch.equal(ts, grids.optimal(sde, 9, measured))
    with pytest.raises(ValueError, match="--mode=grid"):
        build.build(build.GRIDS, {"name": "optimal", "file": "no.json"}, sde=sde, steps=9, workdir=tmp_path)
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        build.build(build.GRIDS, {"name": "optimal", "file": "torn.json"}, sde=sde, steps=9, workdir=tmp_path)


# Trajectories


def test_trajectory_keeps_every_state_and_answer() -> None:
    sde, model, ts = VPSDE(), gaussian((2,)), grids.log_snr(VPSDE(), 6)
    path, x = Trajectory(rows=3), normal(5, 2)
    end = DDIM()(model, sde, x, ts, on_step=path)
    assert torch.equal(path.t, ts[1:])
    assert (path.x.shape, path.x0.shape) == ((6, 3, 2), (6, 3, 2))
    assert torch.equal(path.x[-1], end[:3])
    before = torch.cat([x[None, :3], path.x[:-1]])
    for i in range(6):
        torch.testing.assert_close(path.x0[i], model(before[i], *sde.scales(ts[i])), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [Heun("log_snr"), EulerMaruyama(), AnnealedLangevin(snr=0.1)])
def test_x0_of_a_solver_that_asks_for_noise_is_the_denoised_too(solver: object) -> None:
    # It is worked out from the noise, by division with alpha.
    sde, model, told = VPSDE(), gaussian((2,)), list[Progress]()
    asked = list[tuple[Tensor, Tensor, Tensor]]()

    class Asked:
        def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            asked.append((x, alpha, sigma))
            return model(x, alpha, sigma)

        def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            asked.append((x, alpha, sigma))
            return model.noise(x, alpha, sigma)

    def keep(progress: Progress) -> None:
        told.append(progress)
        last = asked[-1]
        assert progress.x0 is not None
        torch.testing.assert_close(progress.x0, model(*last), rtol=1e-6, atol=1e-6)

    solver(Asked(), sde, normal(3, 2), grids.log_snr(sde, 5), noise=PerSampleNoise(0, range(3)), on_step=keep)  # type: ignore[operator]
    assert len(told) >= 5


# Embedded pairs


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_meet_the_order_conditions(name: str) -> None:
    # Of trees up to order 4 (Hairer, Norsett and Wanner 1993, Table II.2.1), and sum b c^4 = 1/5: the higher method has
    # them to its order, the lower one to one less, and so their difference integrates those to nought.
    pair = PAIRS[name]
    a = np.array([[*row, *[0.0] * (len(pair.nodes) - len(row))] for row in pair.matrix])
    b, c, e = a[-1], np.array(pair.nodes), np.array(pair.error)
    np.testing.assert_allclose(a.sum(1), c, rtol=1e-12)
    trees = [
        (1, np.ones_like(c), 1), (2, c, 1 / 2), (3, c**2, 1 / 3), (3, a @ c, 1 / 6), (4, c**3, 1 / 4),
        (4, c * (a @ c), 1 / 8), (4, a @ c**2, 1 / 12), (4, a @ a @ c, 1 / 24), (5, c**4, 1 / 5),
    ]  # fmt: skip
    for order, values, exact in trees:
        if order <= pair.order:
            assert b @ values == pytest.approx(exact, rel=1e-12)
        if order < pair.order:
            assert e @ values == pytest.approx(0.0, abs=1e-12)
    assert any(abs(e @ values) > 1e-4 for order, values, _ in trees if order == pair.order)


@pytest.mark.parametrize("name", PAIRS)
def test_each_sample_takes_steps_of_its_own(name: str) -> None:
    # y' = rate y, ten times quicker for one row, which has to take more steps and must not make the other's any finer.
    rates, asked = torch.tensor([0.5, 50.0], dtype=torch.float64), list[list[int]]()

    def slope(s: Tensor, y: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        asked.append(rows.tolist())
        return (-rates[rows][:, None] * y[0],)

    start = torch.ones(2, 1, dtype=torch.float64)
    (end,) = adaptive_rk(PAIRS[name], slope, (start,), 1.0, 1e-6, 1e-9)
    torch.testing.assert_close(end[:, 0], torch.exp(-rates), rtol=1e-4, atol=1e-7)
    spent = [sum(row in rows for rows in asked) for row in (0, 1)]
    assert spent[1] > 3 * spent[0]
    alone = [0]

    def lonely(s: Tensor, y: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        alone[0] += 1
        return (-rates[:1, None] * y[0],)

    (same,) = adaptive_rk(PAIRS[name], lonely, (start[:1],), 1.0, 1e-6, 1e-9)
    assert torch.equal(same, end[:1])
    assert alone[0] == spent[0]


def test_error_of_the_embedded_pairs_falls_with_the_tolerance_and_nan_ends_it() -> None:
    def slope(s: Tensor, y: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        return (torch.cos(s)[:, None] * y[0],)

    start, exact = torch.ones(1, 1, dtype=torch.float64), float(np.exp(np.sin(10.0)))
    for pair in PAIRS.values():
        errors = [
            abs(float(adaptive_rk(pair, slope, (start,), 10.0, tol, tol)[0]) - exact) / tol
            for tol in (1e-3, 1e-5, 1e-7)
        ]
        assert max(errors) < 30  # of the tolerance: some 20 to 200 steps, whose errors the flow e^sin carries on
    broken = Pair(3, *[getattr(PAIRS["bosh3"], key) for key in ("nodes", "matrix", "error")])
    with pytest.raises(ValueError, match="NaN"):
        adaptive_rk(broken, lambda s, y, rows: (y[0] * torch.nan,), (start,), 1.0, 1e-3, 1e-3)


def test_adaptive_takes_a_large_batch_at_once() -> None:
    # A batch of 64 costs as many calls as its slowest sample, not the sum of all.
    sde, model = VPSDE(), gaussian((2,))
    together, counts = CountCalls(model), []
    x = normal(64, 2)
    ts = grids.log_snr(sde, 1)
    end = Adaptive()(together, sde, x, ts)
    for i in range(0, 64, 16):
        alone = CountCalls(model)
        assert torch.equal(Adaptive()(alone, sde, x[i : i + 1], ts), end[i : i + 1])
        counts.append(alone.calls)
    assert max(counts) <= together.calls < 2 * max(counts)
