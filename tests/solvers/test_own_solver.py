"""A path of two functions, a path that is a module, and a solver of one step, made by a user."""

import dataclasses

import torch
from oracles import gaussian
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.likelihood import Exact, log_likelihood
from scorefield.sde_lib import SDE, VPSDE, expand, predict_noise
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import (
    DDIM,
    DEIS,
    AdamsMoulton,
    Adaptive,
    DPMSolver,
    EulerMaruyama,
    Heun,
    History,
    Progress,
    Schedule,
    Solver,
    grids,
    sample,
)

MODEL = gaussian((2,))


class Straight(SDE):
    """alpha = 1 - t / 2, sigma = t, which the library does not have."""

    t_min = 1e-3
    t_max = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t / 2)

    def log_sigma(self, t: Tensor) -> Tensor:
        return t.log()


class Learned(nn.Module, SDE):
    """The linear VP path with its last beta as a weight."""

    t_min = 1e-3
    t_max = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.beta_max = nn.Parameter(torch.tensor(20.0, dtype=torch.float64))

    def log_alpha(self, t: Tensor) -> Tensor:
        return -(t * (0.1 + t * (self.beta_max - 0.1) / 2)) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(-torch.expm1(2 * self.log_alpha(t))) / 2


@dataclasses.dataclass(frozen=True)
class OneStep(Solver):
    """DDIM as one line, without any setting."""

    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, None]:
        t, s = schedule[i], schedule[i + 1]
        x0 = denoiser(x, t.alpha, t.sigma)
        eps = (x - t.alpha * x0) / t.sigma
        return s.alpha * x0 + s.sigma * eps, None


def exact_flow(sde: SDE, x: Tensor, ts: Tensor) -> Tensor:
    """N(m, s^2) keeps its quantiles:  x_s = alpha_s m + (x - alpha_t m) std_s / std_t."""
    (a, s), (b, r) = sde.scales(ts[0]), sde.scales(ts[-1])
    mean, std = MODEL.means[0], MODEL.stds[0]
    return b * mean + (x - a * mean) * torch.hypot(b * std, r) / torch.hypot(a * std, s)


def test_a_path_of_two_functions_samples_encodes_and_is_scored() -> None:
    sde = Straight()
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down = grids.log_snr(sde, 60)
    for solver in (DPMSolver(), Heun("log_snr"), AdamsMoulton(), DEIS(3, "sigma")):
        for ts in (down, down.flip(0)):
            assert_close(solver(MODEL, sde, x, ts), exact_flow(sde, x, ts), rtol=2e-2, atol=2e-2)
    assert sample(MODEL, sde, (3, 2), solver=EulerMaruyama(), steps=5).isfinite().all()
    found = log_likelihood(MODEL, sde, x, divergence=Exact(), prior_log_prob=lambda z: MODEL.log_prob(z, 0.5, 1.0))
    assert_close(found.log_prob, MODEL.log_prob(x, *sde.scales(sde.t_min)), rtol=1e-4, atol=1e-4)


def test_a_path_that_is_a_module_gives_what_the_fixed_one_gives() -> None:
    learned, fixed = Learned(), VPSDE(t_min=1e-3)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = grids.log_snr(fixed, 6)
    for solver in (DPMSolver(), Heun("sigma"), DEIS(3, "soft_clipped"), AdamsMoulton(), Adaptive(rtol=1e-2, atol=1e-2)):
        end = solver(MODEL, learned, x, ts)
        assert not end.requires_grad
        assert_close(end, solver(MODEL, fixed, x, ts), rtol=1e-7, atol=1e-7)
    for grid in (grids.log_snr, grids.karras, grids.soft_clipped):
        found = sample(MODEL, learned, (3, 2), steps=4, grid=grid, dtype=torch.float64)
        assert not found.requires_grad
        assert_close(found, sample(MODEL, fixed, (3, 2), steps=4, grid=grid, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    loose = Adaptive(rtol=1e-2, atol=1e-2)
    found, exact = (log_likelihood(MODEL, sde, x, divergence=Exact(), solver=loose) for sde in (learned, fixed))
    assert_close(found.log_prob, exact.log_prob, rtol=1e-6, atol=1e-6)
    x0 = learned.perturb(x, 0.3, torch.ones_like(x))
    (gradient,) = torch.autograd.grad(x0.sum(), learned.beta_max)
    assert float(gradient) != 0


def test_a_solver_of_one_step_is_a_solver() -> None:
    sde, ts = VPSDE(), grids.log_snr(VPSDE(), 6)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for grid in (ts, ts.flip(0)):
        assert_close(OneStep()(MODEL, sde, x, grid), DDIM()(MODEL, sde, x, grid), rtol=1e-8, atol=1e-8)
    seen = list[Progress]()
    shifted = lambda x, a, s, *, y: MODEL(x, a, s) + y  # noqa: E731
    y = torch.arange(3.0, dtype=torch.float64)[:, None].expand(3, 2)
    own = OneStep()(shifted, sde, x, ts, cond={"y": y}, on_step=seen.append)
    assert_close(own, DDIM()(shifted, sde, x, ts, cond={"y": y}), rtol=1e-8, atol=1e-8)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    noise = predict_noise(MODEL, x, 0.8, 0.6)
    assert_close(noise, (x - 0.8 * MODEL(x, 0.8, 0.6)) / expand(0.6, x))
