"""The stochastic solvers against exact moments.

For Gaussian data every step is affine, x' = A x + B + C z, so the mean and the variance of what a solver makes are
known without drawing anything: `by_hand` carries them along the published steps, and `of_solver` reads them off the
solver itself, as its answers to unit impulses of noise. The first says how far a grid is from the limit, the second
that the noise has its scale to many digits. Then real draws, from the exact marginal at t_max, must have the exact
moments at t_min. Seeds are fixed: where there are draws a comment says how often another seed would be a false alarm.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PATHS, SHAPES, Direct, gaussian, mixture, plain
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, DiscreteVPSDE
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers import (
    DDIM,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    Churn,
    ConsistentAnnealed,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    SASolver,
    Solver,
    StochasticDPMSolver,
    grids,
)
from scorefield.solvers.schedule import Schedule

Affine = tuple[Tensor, Tensor, Tensor]  # A, B and C^2 of x' = A x + B + C z, one for each coordinate
Moments = tuple[Tensor, Tensor]  # mean and variance

CORRECTOR = AnnealedLangevin(snr=0.16)
NCSN = AnnealedLangevin(steps=4, step_size=0.02, denoise=False)
NCSNV2 = AnnealedLangevin(steps=4, step_size=None, denoise=False)
FIRST: dict[str, Solver] = {
    "ddim-1": DDIM(eta=1.0),
    "ddim-0.5": DDIM(eta=0.5),
    "em": EulerMaruyama(),
    "pc-em": PredictorCorrector(EulerMaruyama(), CORRECTOR),
    "pc-ddim": PredictorCorrector(DDIM(), CORRECTOR),
}
SOLVERS: dict[str, Solver] = FIRST | {
    "ancestral-small": Ancestral(),
    "ancestral-large": Ancestral("large"),
    "rd": ReverseDiffusion(),
    "pc-rd": PredictorCorrector(ReverseDiffusion(), CORRECTOR),
    "cp-rd": PredictorCorrector(ReverseDiffusion(), CORRECTOR, order="correct_first"),
    "cp-ddim": PredictorCorrector(DDIM(), CORRECTOR, order="correct_first"),
    "cas": ConsistentAnnealed(),
    "cas-0.7": ConsistentAnnealed(eta=0.7),
    "churn": Churn(),
    "churn-little": Churn(amount=3.0, low=0.2, high=3.0, noise=1.0),
    "sdpm1": StochasticDPMSolver(1),
    "sdpm1-0.3": StochasticDPMSolver(1, eta=0.3),
}
# Those that remember their steps: judged by a loop of our own.
MULTISTEP: dict[str, tuple[Solver, tuple[Any, ...]]] = {
    "sdpm2": (StochasticDPMSolver(2), ("dpm", 2, 1.0, False, "x0")),
    "sdpm2-0.3": (StochasticDPMSolver(2, eta=0.3), ("dpm", 2, math.sqrt(0.3), False, "x0")),
    "sdpm3": (StochasticDPMSolver(3), ("dpm", 3, 1.0, False, "x0")),
    "sab1": (SASolver(1, corrector=False), ("adams", 1, 1.0, False, "x0")),
    "sabm1": (SASolver(1), ("adams", 1, 1.0, True, "x0")),
    "sab2": (SASolver(2, 0.5, corrector=False), ("adams", 2, 0.5, False, "x0")),
    "sabm2": (SASolver(2, 1.4), ("adams", 2, 1.4, True, "x0")),
    "sab3": (SASolver(3, corrector=False), ("adams", 3, 1.0, False, "x0")),
    "sabm3": (SASolver(), ("adams", 3, 1.0, True, "x0")),
    "sabm3-0.5": (SASolver(3, 0.5), ("adams", 3, 0.5, True, "x0")),
    "sabm4": (SASolver(4), ("adams", 4, 1.0, True, "x0")),
    "sabm3-eps": (SASolver(3, 0.5, predict="eps"), ("adams", 3, 0.5, True, "eps")),
    "sab2-eps": (SASolver(2, 0.5, False, "eps"), ("adams", 2, 0.5, False, "eps")),
}

every_path = pytest.mark.parametrize("path", ["vp", "edm"])
one_path = pytest.mark.parametrize("path", ["cosine"])


# The published steps, by hand, for coordinates that are N(m, s^2)


def ancestral(sde: SDE, m: Tensor, s: Tensor, t: Tensor, u: Tensor, eta: float) -> Affine:
    """DDIM's Eq. 12 and 16 through the variance of x_t given x_u, which Eq. 16 calls 1 - alpha_t / alpha_{t-1}."""
    (at, st), (au, su) = sde.scales(t), sde.scales(u)
    tau2 = eta**2 * su**2 / st**2 * (st**2 - (at / au) ** 2 * su**2)
    kept = torch.sqrt(su**2 - tau2) / st
    gain = at * s**2 / (at**2 * s**2 + st**2)
    return kept + (au - at * kept) * gain, (au - at * kept) * (m - gain * at * m), tau2 + 0 * m


def reverse_sde(sde: SDE, m: Tensor, s: Tensor, t: Tensor, u: Tensor) -> Affine:
    """Song et al. 2021, Eq. 6, one Euler-Maruyama step; the score is -(x - alpha m) / v."""
    at, st = sde.scales(t)
    f, g2, v = sde.drift(t), sde.diffusion(t) ** 2, at**2 * s**2 + st**2
    return 1 + (f + g2 / v) * (u - t), -g2 * at * m / v * (u - t), g2 * (t - u) + 0 * m


def langevin(sde: SDE, m: Tensor, s: Tensor, u: Tensor, a: Tensor) -> Affine:
    """x' = x + a score / 2 + sqrt(a) z."""
    au, su = sde.scales(u)
    v = au**2 * s**2 + su**2
    return 1 - a / (2 * v), a / 2 * au * m / v, a + 0 * m


def annealed(sde: SDE, m: Tensor, s: Tensor, ts: Tensor, steps: int, step_size: float) -> list[Affine]:
    """Song and Ermon 2019, Alg. 1, in x / alpha, whose noise levels are sigma / alpha, and back to x."""
    alpha, sigma = sde.scales(ts)
    noise, out = sigma / alpha, list[Affine]()
    for i, t in enumerate(ts):
        if i > 0:
            out.append((alpha[i] / alpha[i - 1] + 0 * m, 0 * m, 0 * m))
        a = step_size * (noise[i] / noise[-1]) ** 2  # line 3
        out += [langevin(sde, m, s, t, a * alpha[i] ** 2)] * steps
    return out


def turned(sde: SDE, m: Tensor, s: Tensor, t: Tensor, u: Tensor) -> Affine:
    """Song et al. 2021, Eq. 46 for a forward step x_t = r x_u + G z:  x' = (2 - r) x + G^2 score + G z."""
    (at, st), (au, su) = sde.scales(t), sde.scales(u)
    r, v = at / au, at**2 * s**2 + st**2
    g2 = st**2 - r**2 * su**2
    return 2 - r - g2 / v, g2 * at * m / v, g2 + 0 * m


def consistent(sde: SDE, m: Tensor, s: Tensor, t: Tensor, u: Tensor, eta: float | None) -> Affine:
    """Jolicoeur-Martineau et al. 2021, Alg. 2, in y = x / alpha:  y + eta n^2 score(y) + beta n' z."""
    (at, st), (au, su) = sde.scales(t), sde.scales(u)
    nt, nu = st / at, su / au
    share = torch.clamp(1.5 * (1 - nu / nt), max=1.0) if eta is None else eta
    pull = share * nt**2 / (s**2 + nt**2)  # eta n^2 score = -pull (y - m)
    return au / at * (1 - pull), au * pull * m, au**2 * (nu**2 - ((1 - share) * nt) ** 2) + 0 * m


def churned(sde: SDE, m: Tensor, s: Tensor, t: Tensor, u: Tensor, levels: int, solver: Churn) -> Affine:
    """Karras et al. 2022, Alg. 2, in y = x / alpha; levels end where the path does."""
    (at, st), (au, su) = sde.scales(t), sde.scales(u)
    top = (sde.scales(sde.t_max)[1] / sde.scales(sde.t_max)[0]).double()
    nt, nu = st / at, su / au
    gamma = torch.where((nt >= solver.low) & (nt <= solver.high), min(solver.amount / levels, math.sqrt(2) - 1), 0.0)
    raised = torch.minimum(nt * (1 + gamma), top)
    time_weight, then = raised / (s**2 + raised**2), nu / (s**2 + nu**2)  # d = time_weight (y - m)
    euler = 1 + (nu - raised) * time_weight
    keep = 1 + (nu - raised) * (time_weight + then * euler) / 2
    return au / at * keep, au * m * (1 - keep), (au * keep * solver.noise) ** 2 * (raised**2 - nt**2)


def steadiest(gamma2: float, steps: int) -> float:
    """NCSNv2's e = epsilon / sigma^2 for a ratio of levels: the least of the variance after all steps at a level."""

    def slope(e: float) -> float:
        rest, centre = (1 - e) ** (2 * steps), 2 / (2 - e)
        return -2 * steps * rest / (1 - e) * (gamma2 - centre) + (1 - rest) * centre**2 / 2

    return float(brentq(slope, 1e-6, 0.9, xtol=1e-15))


def published(name: str, sde: SDE, m: Tensor, s: Tensor, ts: Tensor) -> list[Affine]:
    """The steps a solver of that name should take."""
    if name == "ncsn":
        return annealed(sde, m, s, ts, 4, 0.02)
    if name == "ncsnv2":
        gamma2 = math.exp(float(sde.log_snr(ts[-1]) - sde.log_snr(ts[0])) / (len(ts) - 1))
        last = sde.scales(ts[-1])
        return annealed(sde, m, s, ts, 4, 2 * steadiest(gamma2, 4) * float(last[1] / last[0]) ** 2)
    t, u = ts[:-1, None], ts[1:, None]  # all the steps at once
    if name.endswith("em"):
        predictor = reverse_sde(sde, m, s, t, u)
    elif name.endswith("rd"):
        predictor = turned(sde, m, s, t, u)
    elif name.startswith("cas"):
        predictor = consistent(sde, m, s, t, u, SOLVERS[name].eta)  # type: ignore[attr-defined]
    elif name.startswith("churn"):
        predictor = churned(sde, m, s, t, u, len(ts), SOLVERS[name])  # type: ignore[arg-type]
    elif name == "sdpm1-0.3":  # DPM-Solver++, Eq. 18, with e^(-eta h) for e^-h
        (at, st), (au, su) = sde.scales(t), sde.scales(u)
        h = (au / su).log() - (at / st).log()
        gain = at * s**2 / (at**2 * s**2 + st**2)
        weight = -au * torch.expm1(-1.3 * h)
        kept = su / st * torch.exp(-0.3 * h)
        predictor = (kept + weight * gain, weight * (m - gain * at * m), -(su**2) * torch.expm1(-0.6 * h) + 0 * m)
    else:
        eta = {"ddim-0.5": 0.5, "pc-ddim": 0.0, "cp-ddim": 0.0}.get(name, 1.0)
        predictor = ancestral(sde, m, s, t, u, eta)
        if name == "ancestral-large":  # sigma_q^2 = beta: Ho et al. 2020, Section 3.2
            (at, st), (au, su) = sde.scales(t), sde.scales(u)
            predictor = (*predictor[:2], st**2 - (at / au * su) ** 2 + 0 * m)
    steps = list(zip(*predictor, strict=True))
    if not name.startswith(("pc", "cp")):
        return steps
    # Song et al. 2021, Alg. 4-5: epsilon = 2 (r |z| / |score|)^2, with |z| / |score| = sigma, and a = 2 epsilon.
    level = u if name.startswith("pc") else t
    corrector = list(zip(*langevin(sde, m, s, level, 2 * 2 * (0.16 * sde.scales(level)[1]) ** 2), strict=True))
    pairs = zip(steps, corrector, strict=True) if name.startswith("pc") else zip(corrector, steps, strict=True)
    return [step for pair in pairs for step in pair]


@functools.cache
def integrals(knots: tuple[float, ...], start: float, end: float, tau: float, predict: str) -> tuple[float, ...]:
    """The kernel of the exponential integral (Xue et al. 2023, Eq. 14 and 15) times Lagrange polynomials, by scipy."""
    more = 1 + tau**2

    def inside(l: float, j: int) -> float:  # noqa: E741
        basis = math.prod((l - k) / (knots[j] - k) for i, k in enumerate(knots) if i != j)
        return more * basis * (math.exp(more * (l - end)) if predict == "x0" else -math.exp(end - l))

    return tuple(quad(inside, start, end, (j,), epsabs=0, epsrel=1e-13)[0] for j in range(len(knots)))


def multistep(family: str, order: int, tau: float, corrector: bool, predict: str) -> Callable[..., Tensor]:
    """The reverse process by multistep methods, as a loop that keeps everything."""

    def loop(model: Any, sde: SDE, x: Tensor, ts: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        alpha, sigma = sde.scales(ts)
        l = (alpha / sigma).log().tolist()  # noqa: E741
        seen, states, jolts = list[Tensor](), list[Tensor](), list[Tensor]()

        def taken(i: int, nodes: list[int]) -> Tensor:
            h = l[i + 1] - l[i]
            if family == "dpm" and len(nodes) == 2:
                ratio = h / (l[i] - l[i - 1]) / 2
                whole = integrals((l[i],), l[i], l[i + 1], tau, predict)[0]
                weights: tuple[float, ...] = (whole * (1 + ratio), -whole * ratio)
            else:
                weights = integrals(tuple(l[k] for k in nodes), l[i], l[i + 1], tau, predict)
            if predict == "x0":
                kept, scale = sigma[i + 1] / sigma[i] * math.exp(-(tau**2) * h), alpha[i + 1]
            else:
                kept, scale = alpha[i + 1] / alpha[i], sigma[i + 1]
            sum_ = sum(w * seen[k] for w, k in zip(weights, nodes, strict=True))
            return kept * states[i] + scale * sum_ + jolts[i]

        for i in range(len(ts) - 1):
            denoised = model(x, alpha[i], sigma[i])
            seen.append(denoised if predict == "x0" else (x - alpha[i] * denoised) / sigma[i])
            if corrector and i > 0:
                x = taken(i - 1, list(range(i, max(i - max(order, 2), -1), -1)))
            h = l[i + 1] - l[i]
            variance = -math.expm1(-2 * tau**2 * h) if predict == "x0" else tau**2 * math.expm1(2 * h)
            jolts.append(sigma[i + 1] * math.sqrt(variance) * noise(x))
            states.append(x)
            x = taken(i, list(range(i, max(i - order, -1), -1)))
        return x

    return loop


def marginal(sde: SDE, m: Tensor, s: Tensor, t: Tensor | float) -> Moments:
    alpha, sigma = sde.scales(t)
    return alpha * m, (alpha * s) ** 2 + sigma**2


def after(steps: list[Affine], start: Moments) -> Moments:
    """Mean and variance after these steps."""
    mean, variance = start
    for a, b, c2 in steps:
        mean, variance = a * mean + b, a**2 * variance + c2
    return mean, variance


def by_hand(name: str, sde: SDE, m: Tensor, s: Tensor, ts: Tensor) -> Moments:
    """Mean and variance after the published steps, from the exact marginal at ts[0]."""
    return after(published(name, sde, m, s, ts), marginal(sde, m, s, ts[0]))


def draws_of(solver: Any, model: GaussianMixture, sde: SDE, ts: Tensor) -> int:
    """How often it asks for noise."""
    asked = 0

    def silence(like: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return torch.zeros_like(like)

    solver(model, sde, model.means[:1], ts, noise=silence)
    return asked


def of_solver(
    solver: Any, model: GaussianMixture, sde: SDE, ts: Tensor, draws: int | None = None, loudness: float = 1.0
) -> Moments:
    """Mean and variance of the solver's output, from the exact marginal at ts[0], with no draw at all.

    One row of the batch sees no noise, one a start that is a standard deviation off, and one each a unit of noise in
    one of the solver's `draws` draws: what they do to the output are the terms of its variance.
    """
    draws = draws_of(solver, model, sde, ts) if draws is None else draws
    mean, variance = marginal(sde, model.means[0], model.stds[0], ts[0])
    x = mean.expand(2 + draws, *mean.shape).clone()
    x[1] += variance.sqrt()
    call = 1

    def impulse(like: Tensor) -> Tensor:
        nonlocal call
        call += 1
        out = torch.zeros_like(like)
        out[call] = loudness
        return out

    out = solver(model, sde, x, ts, noise=impulse)
    assert call == draws + 1
    return out[0], (out[1:] - out[0]).square().sum(0)


ANNEALED = {"ncsn": NCSN, "ncsnv2": NCSNV2}
MOMENTS = [*SOLVERS, *ANNEALED, *MULTISTEP]


def both(name: str, path: str, loudness: float = 1.0) -> tuple[Moments, Moments]:
    """A solver's moments and those of the published steps."""
    sde, model = PATHS[path], plain((2,))
    ts = grids.log_snr(sde, 30)
    if name in MULTISTEP:
        ts = grids.karras(sde, 30)  # steps of unequal length in the log-SNR
        solver, settings = MULTISTEP[name]
        return of_solver(solver, model, sde, ts, None, loudness), of_solver(multistep(*settings), model, sde, ts)
    if name in ANNEALED:
        high = float(sde.scales(sde.t_max)[1] / sde.scales(sde.t_max)[0])
        ts = grids.sigmas(sde, np.geomspace(high, 0.3, 8).tolist())
    solver = (SOLVERS | ANNEALED)[name]
    return of_solver(solver, model, sde, ts, None, loudness), by_hand(name, sde, model.means[0], model.stds[0], ts)


def tolerance(name: str) -> float:
    """Rounding; but for NCSNv2 the least of a function, which is known to the root of that."""
    return 1e-5 if name == "ncsnv2" else 1e-8


@every_path
@pytest.mark.parametrize("name", MOMENTS)
def test_moments_are_those_of_the_published_steps_to_rounding(path: str, name: str) -> None:
    (mean, variance), (mean_by_hand, variance_by_hand) = both(name, path)
    torch.testing.assert_close(variance, variance_by_hand, rtol=tolerance(name), atol=1e-12)
    torch.testing.assert_close(mean, mean_by_hand, rtol=tolerance(name), atol=1e-10)


@pytest.mark.parametrize("name", ["em", "sabm3", "ncsnv2", "pc-em"])
def test_noise_2_percent_too_loud_would_be_seen_in_the_moments(name: str) -> None:
    # The same statistic as above, from noise of 1.02: a hundred times and more beyond what is allowed there.
    for path in ("vp", "edm"):
        (_, variance), (_, expected) = both(name, path, loudness=1.02)
        assert float((variance / expected - 1).abs().max()) > 1e-3 >= 99 * tolerance(name)


@one_path
@pytest.mark.parametrize("name", ["ddim-1", "ddim-0.5", "em", "ancestral-large", "rd", "cas", "sdpm1-0.3"])
def test_variance_tends_to_the_exact_one_at_first_order(path: str, name: str) -> None:
    sde, model = PATHS[path], gaussian((2,))
    exact = marginal(sde, model.means[0], model.stds[0], sde.t_min)[1]
    errors = [
        float((of_solver(SOLVERS[name], model, sde, grids.log_snr(sde, n), draws=n)[1] / exact - 1).norm())
        for n in (128, 256)
    ]
    assert math.log2(errors[0] / errors[1]) > 0.8  # at least the nominal order: on VE the leading term is nearly nought
    assert errors[1] < 0.1


@one_path
@pytest.mark.parametrize(
    ("name", "bias"), [("sdpm2", 0.03), ("sdpm2-0.3", 0.02), ("sabm3", 0.01), ("sabm3-0.5", 0.01), ("sabm4", 0.01)]
)
def test_methods_of_higher_order_have_nearly_the_exact_moments_in_60_steps(path: str, name: str, bias: float) -> None:
    # The distribution is of order 1 in the noise, yet with a constant so small that 60 steps leave 1 to 3 %.
    sde, model = PATHS[path], plain((2,))
    ts = grids.log_snr(sde, 60)
    mean, variance = of_solver(MULTISTEP[name][0], model, sde, ts)
    exact_mean, exact = marginal(sde, model.means[0], model.stds[0], sde.t_min)
    torch.testing.assert_close(variance, exact, rtol=bias, atol=0.0)
    torch.testing.assert_close(mean, exact_mean, rtol=0.0, atol=0.01)


@one_path
def test_churn_without_its_extra_noise_tends_to_the_exact_variance(path: str) -> None:
    # S_noise = 1.003 is there to be wrong by that much. Without it Heun's second order is left, but for gamma's bound.
    sde, model = PATHS[path], plain((2,))
    exact = marginal(sde, model.means[0], model.stds[0], sde.t_min)[1]
    errors = [
        float((of_solver(Churn(noise=1.0), model, sde, grids.log_snr(sde, n))[1] / exact - 1).norm()) for n in (64, 128)
    ]
    assert errors[1] < 0.03
    assert errors[1] < 0.5 * errors[0]


@one_path
@pytest.mark.parametrize(
    ("predictor", "bias"), [(Heun(), 0.02), (DPMSolver(multistep=False), 0.02), (DPMSolver(), 0.04)]
)
def test_any_stepper_can_be_the_predictor(path: str, predictor: Solver, bias: float) -> None:
    # Of second order: 200 steps leave it an error of 1e-3. The corrector's own bias, of relative size snr^2 = 0.026
    # where noise rules, fades with the noise, and 1 to 1.5 % of it is left. A multistep predictor extrapolates the
    # corrector's noise too, which doubles it.
    sde, model = PATHS[path], gaussian((2,))
    solver = PredictorCorrector(predictor, CORRECTOR)
    mean, variance = of_solver(solver, model, sde, grids.log_snr(sde, 200), draws=200)
    exact_mean, exact = marginal(sde, model.means[0], model.stds[0], sde.t_min)
    torch.testing.assert_close(variance, exact, rtol=bias, atol=0.0)
    torch.testing.assert_close(mean, exact_mean, rtol=0.0, atol=0.02)


@one_path
def test_langevin_at_one_level_has_the_stationary_variance_of_its_step(path: str) -> None:
    # Unadjusted Langevin of step a on N(0, v) is stationary at v / (1 - a / (4 v)). Here a = (0.5 sigma)^2 and v is of
    # sigma's size, so 200 steps forget where they began (0.9^400).
    sde, model = PATHS[path], gaussian((2,))
    t = sde.time(torch.tensor(-2.0, dtype=torch.float64))
    v, a = marginal(sde, model.means[0], model.stds[0], t)[1], (0.5 * sde.scales(t)[1]) ** 2
    for solver in (AnnealedLangevin(snr=0.25, steps=200, denoise=False), AnnealedLangevin(200, 0.25, denoise=False)):
        # The second has NCSN's rule: at the only level its step is step_size, in units of the level's alpha.
        step = a if solver.snr else 0.25 * sde.scales(t)[0] ** 2
        mean, variance = of_solver(solver, model, sde, t.reshape(1), draws=200)
        forgotten = (1 - step / (2 * v)) ** 400
        torch.testing.assert_close(variance, v / (1 - step / (4 * v)) * (1 - forgotten) + v * forgotten)
        torch.testing.assert_close(mean, sde.scales(t)[0] * model.means[0])


# Draws


@functools.cache
def covariance() -> tuple[Tensor, Tensor, Tensor]:
    """A correlated Gaussian in the plane: mean, the axes of its covariance, and its standard deviations along them."""
    mean = torch.tensor([0.8, -0.5], dtype=torch.float64)
    values, axes = torch.linalg.eigh(torch.tensor([[0.9, 0.3], [0.3, 0.4]], dtype=torch.float64))
    return mean, axes, values.sqrt()


def correlated(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of that Gaussian:  m + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha m)."""
    mean, axes, std = covariance()
    gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
    return mean + (x - alpha * mean) @ ((axes * gain) @ axes.T)


def assert_moments(x: Tensor, mean: Tensor, cov: Tensor, errors: float = 4.0) -> None:
    """Sample mean and covariance within that many standard errors, (S_ii S_jj + S_ij^2) / n squared, of these."""
    n = len(x)
    centred = x - mean
    sample = centred.T @ centred / n
    diagonal = cov.diagonal()
    assert bool((centred.mean(0).abs() < errors * (diagonal / n).sqrt()).all()), (centred.mean(0), diagonal / n)
    spread = ((torch.outer(diagonal, diagonal) + cov**2) / n).sqrt()
    assert bool(((sample - cov).abs() < errors * spread).all()), (sample, cov, spread)


def seeded(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def crowded(sde: SDE, steps: int) -> Tensor:
    """Equal steps in asinh(log-SNR - 1): crowded where sigma is of the data's size, which is where a bias stays."""
    ends = torch.asinh(sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)) - 1)
    warped = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    ts = sde.time(torch.sinh(warped) + 1)
    ts[0], ts[-1] = sde.t_max, sde.t_min
    return ts


@one_path
@pytest.mark.parametrize(("name", "steps"), [("em", 600), ("pc-ddim", 300)])
def test_draws_have_the_exact_mean_and_covariance(path: str, name: str, steps: int) -> None:
    # 8000 draws: 1.6 % is a variance's standard error, and noise 5 % too loud adds 10 % to it. The grid's bias is known
    # from `by_hand`, along the axes of the covariance, and is below half a standard error. 9 paths of 5 solvers and 5
    # numbers, each beyond 4 standard errors with a chance of 6e-5 (2e-4 with all the bias allowed): 1 to 5 % in all.
    sde, n = PATHS[path], 8000
    mean, axes, std = covariance()
    ts = crowded(sde, steps)
    _, biased = by_hand(name, sde, 0 * std, std, ts)
    exact_mean, exact = marginal(sde, mean, std, sde.t_min)
    assert bool(((biased / exact - 1).abs() < 0.5 * math.sqrt(2 / n)).all())
    alpha, sigma = sde.scales(sde.t_max)
    noise = seeded(1)
    blank = torch.empty(n, 2, dtype=torch.float64)
    x = alpha * (mean + noise(blank) * std @ axes.T) + sigma * noise(blank)
    x = SOLVERS[name](correlated, sde, x, ts, noise=noise)
    assert_moments(x, exact_mean, (axes * exact) @ axes.T)


@one_path
def test_draws_of_annealed_langevin_have_the_exact_mean_and_covariance(path: str) -> None:
    # Alone it needs time at the last level, sigma / alpha = 1 as in the paper's example: levels that halve down to it
    # and twelve more within a percent of it, 60 steps each. The bias left, known by hand, is the stationary one,
    # a / (4 v), at most 0.6 % against a standard error of 1.6 %. 9 cases of 5 numbers beyond 4 standard errors, each
    # with a chance of 1e-4 with that bias: a false alarm in 1 of 200 seeds.
    sde, n = PATHS[path], 8000
    mean, axes, std = covariance()
    start_alpha, start_sigma = sde.scales(sde.t_max)
    high = float(start_sigma / start_alpha)
    ts = grids.sigmas(sde, [*np.geomspace(high, 1.01, math.ceil(math.log2(high)))[:-1], *np.geomspace(1.01, 1, 13)])
    _, biased = after(annealed(sde, 0 * std, std, ts, 60, 0.03), marginal(sde, 0 * std, std, ts[0]))
    _, exact = marginal(sde, mean, std, ts[-1])
    assert bool(((biased / exact - 1).abs() < 0.5 * math.sqrt(2 / n)).all())
    noise = seeded(2)
    blank = torch.empty(n, 2, dtype=torch.float64)
    x = start_alpha * (mean + noise(blank) * std @ axes.T) + start_sigma * noise(blank)
    x = AnnealedLangevin(steps=60, step_size=0.03)(correlated, sde, x, ts, noise=noise)
    # Ended with D(x), which is affine in x: its variance is gain^2 that of x, and its mean is the data's.
    exact = (sde.scales(ts[-1])[0] * std**2) ** 2 / exact
    assert_moments(x, mean, (axes * exact) @ axes.T)


@one_path
@pytest.mark.parametrize("shape", SHAPES[2:])
@pytest.mark.parametrize("name", ["ddim-0.5", "em", "ncsn"])
def test_draws_of_images_have_the_moments_of_the_steps(path: str, shape: tuple[int, ...], name: str) -> None:
    # Few steps, so against the exact moments of those steps, which tend to the exact ones (above). Along five fixed
    # directions, and over all coordinates at once, where noise 5 % too loud is some ten standard errors. 108 cases of
    # 11 numbers beyond 4.5 standard errors, 7e-6 each: a false alarm in 1 of 120 seeds.
    sde, model, n = PATHS[path], gaussian(shape), 192
    m, s = model.means[0].flatten(), model.stds[0].flatten()
    ts = grids.log_snr(sde, 12)
    if name == "ncsn":
        high = float(sde.scales(sde.t_max)[1] / sde.scales(sde.t_max)[0])
        ts = grids.sigmas(sde, np.geomspace(high, 0.3, 5).tolist())
    noise = seeded(3)
    mean, variance = marginal(sde, m, s, ts[0])
    x = mean.reshape(shape) + variance.sqrt().reshape(shape) * noise(torch.empty(n, *shape, dtype=torch.float64))
    solver = NCSN if name == "ncsn" else SOLVERS[name]
    x = solver(model, sde, x, ts, noise=noise).flatten(1)
    mean, variance = by_hand(name, sde, m, s, ts)
    white = (x - mean) / variance.sqrt()
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(len(m), 5, generator=generator, dtype=torch.float64)
    along = white @ (directions / directions.norm(dim=0))
    assert float(along.mean(0).abs().max()) < 4.5 * n**-0.5
    assert float((along.square().mean(0) - 1).abs().max()) < 4.5 * (2 / n) ** 0.5
    assert abs(float(white.square().mean()) - 1) < 4.5 * (2 / white.numel()) ** 0.5


FINE = AdaptiveSDE(rtol=0.03, atol=0.006)
WEAK: dict[str, Solver] = {  # not affine: their steps, or their steps' sizes, depend on the state
    "adaptive": FINE,
    "adaptive-soft_clipped": AdaptiveSDE(rtol=0.03, atol=0.006, variable="soft_clipped"),
    "adaptive-shared": AdaptiveSDE(rtol=0.03, atol=0.006, per_sample=False),
    "pc-em-sample": PredictorCorrector(EulerMaruyama(), AnnealedLangevin(snr=0.05, norms="sample")),
    "pc-em-batch": PredictorCorrector(EulerMaruyama(), AnnealedLangevin(snr=0.05, norms="batch")),
}


def too_wide(name: str, path: str, loudness: float) -> float:
    """By how many standard errors the pooled variance of draws of images is beyond its exact one; the mean beside."""
    sde, model, n = PATHS[path], plain((3, 8, 8)), 256
    noise, ts = seeded(12), grids.log_snr(sde, 12)
    mean, variance = marginal(sde, model.means[0], model.stds[0], ts[0])
    x = mean + variance.sqrt() * noise(torch.empty(n, *mean.shape, dtype=torch.float64))
    x = WEAK[name](Direct(model), sde, x, ts, noise=lambda like: loudness * noise(like))
    mean, variance = marginal(sde, model.means[0], model.stds[0], ts[-1])
    if "em" in name:  # twelve steps are far from the limit: against the same steps with the norms' expected values
        mean, variance = of_solver(PredictorCorrector(EulerMaruyama(), AnnealedLangevin(snr=0.05)), model, sde, ts)
    white = (x - mean) / variance.sqrt()
    assert float(white.mean(0).abs().max()) < 5 * n**-0.5  # of 192 coordinates: 1e-4
    return float((white.square().mean() - 1) / math.sqrt(2 / white.numel()))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("vp", "adaptive"),
        ("vp", "adaptive-soft_clipped"),
        ("ve", "adaptive-shared"),
        *(("ve", name) for name in WEAK if name.startswith("pc")),
    ],
)
def test_draws_of_solvers_that_bend_have_the_exact_moments(path: str, name: str) -> None:
    # 256 images of 192 coordinates: the pooled variance has a standard error of 0.64 %. Three of them, for a bias of up
    # to one beside two of chance: 13 cases, a false alarm in about 1 of 10 seeds at the worst, and of this one none.
    # (The paths marked slow take the same code.)
    assert abs(too_wide(name, path, 1.0)) < 3


@pytest.mark.parametrize("name", ["pc-em-sample"])
def test_draws_of_solvers_that_bend_would_show_noise_2_percent_too_loud(name: str) -> None:
    # 1.02 makes 4 % of variance, six standard errors.
    assert too_wide(name, "vp", 1.02) > 3


@pytest.mark.parametrize("path", ["vp"])
@pytest.mark.parametrize(("name", "steps"), [("em", 500)])
def test_draws_from_a_mixture_have_its_mean_covariance_weights_and_density(path: str, name: str, steps: int) -> None:
    # Not affine, so no bias by hand: measured once with 256 000 draws, it is at most 0.65 of these standard errors.
    # 6 cases of 7 numbers beyond 4 of them: a false alarm in 1 of 100 seeds even so.
    sde, model, n = PATHS[path], mixture((2,)), 8000
    noise, ts = seeded(5), crowded(sde, steps)
    x = sde.perturb(model.sample(n, torch.Generator().manual_seed(6)), sde.t_max, noise(torch.empty(n, 2).double()))
    x = SOLVERS[name](model, sde, x, ts, noise=noise)
    truth = model.sample(10**5, torch.Generator().manual_seed(7))  # at t_min sigma is below 0.01
    for statistic in (
        lambda y: y,
        lambda y: torch.stack([y[:, 0] ** 2, y[:, 0] * y[:, 1], y[:, 1] ** 2], 1),
        lambda y: (y @ model.means[0] > 0).double()[:, None],
        lambda y: model.log_prob(y)[:, None],  # the one that hears noise 5 % too loud, over the spread of the modes
    ):
        drawn, exact = statistic(x), statistic(truth)
        error = (drawn.mean(0) - exact.mean(0)).abs() / (exact.var(0) * (1 / n + 1 / len(truth))).sqrt()
        assert float(error.max()) < 4


# Single steps by hand


def split(solver: Solver, model: Any, sde: SDE, x: Tensor, ts: Tensor) -> tuple[Tensor, Tensor]:
    """A step's mean and what one unit of noise adds to it."""
    mean = solver(model, sde, x, ts, noise=torch.zeros_like)
    return mean, solver(model, sde, x, ts, noise=torch.ones_like) - mean


@every_path
def test_ddim_of_eta_1_is_the_posterior_given_the_denoised(path: str) -> None:
    # q(x_u | x_t, x0 = D) by Bayes: prior N(alpha_u D, sigma_u^2), likelihood x_t ~ N(r x_u, b).
    sde, model = PATHS[path], gaussian((2,))
    ts = sde.time(torch.tensor([-3.0, -1.0], dtype=torch.float64))
    (at, st), (au, su) = sde.scales(ts[0]), sde.scales(ts[1])
    x = torch.tensor([[0.3, -2.0], [1.5, 0.0]], dtype=torch.float64)
    r, denoised = at / au, model(x, at, st)
    b = st**2 - r**2 * su**2
    precision = 1 / su**2 + r**2 / b
    expected = (au * denoised / su**2 + r * x / b) / precision
    mean, std = split(DDIM(eta=1.0), model, sde, x, ts)
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(std, precision.rsqrt().expand_as(x), rtol=1e-10, atol=1e-12)


def test_ddim_of_eta_1_is_ddpms_ancestral_step() -> None:
    # Ho et al. 2020, Eq. 7, from the betas, at timestep k = 500 of 1000.
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    now, before, beta = bar[500], bar[499], betas[500]
    x, sde = torch.tensor([[0.3, -2.0]], dtype=torch.float64), DiscreteVPSDE("linear")
    ts = torch.tensor([501 / 1000, 500 / 1000], dtype=torch.float64)
    expected = before.sqrt() * beta / (1 - now) * 0.7 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
    mean, std = split(DDIM(eta=1.0), lambda x, alpha, sigma: torch.full_like(x, 0.7), sde, x, ts)
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(std, (beta * (1 - before) / (1 - now)).sqrt().expand_as(x), rtol=1e-10, atol=1e-12)


def test_euler_maruyama_on_vp_is_the_papers_step() -> None:
    # dx = -(beta / 2 x + beta score) dt + sqrt(beta) dw, backwards: Song et al. 2021, Eq. 11 and 6.
    sde, model = VPSDE(), gaussian((2,))
    ts, x = torch.tensor([0.5, 0.48], dtype=torch.float64), torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    beta, alpha = 0.1 + 0.5 * 19.9, math.exp(-(0.1 * 0.5 + 19.9 * 0.5**2 / 2) / 2)
    score = -(x - alpha * model.means[0]) / ((alpha * model.stds[0]) ** 2 + 1 - alpha**2)
    mean, std = split(EulerMaruyama(), model, sde, x, ts)
    torch.testing.assert_close(mean, x + 0.02 * (beta / 2 * x + beta * score), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(std, torch.full_like(x, math.sqrt(beta * 0.02)), rtol=1e-10, atol=1e-12)


def test_euler_maruyama_on_ve_is_the_papers_step() -> None:
    # dx = -d[sigma^2]/dt score dt + sqrt(d[sigma^2]/dt) dw, backwards: Eq. 9, with sigma geometric in time.
    sde, model = VESDE(0.01, 50.0), gaussian((2,))
    ts, x = torch.tensor([0.5, 0.48], dtype=torch.float64), torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    sigma2 = 0.01 * 50.0
    g2 = 2 * sigma2 * math.log(5000)
    mean, std = split(EulerMaruyama(), model, sde, x, ts)
    score = -(x - model.means[0]) / (model.stds[0] ** 2 + sigma2)
    torch.testing.assert_close(mean, x + 0.02 * g2 * score, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(std, torch.full_like(x, math.sqrt(g2 * 0.02)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norms", ["sample", "batch"])
def test_measured_norms_are_the_papers_corrector(norms: str) -> None:
    # Song et al. 2021, Alg. 4: epsilon = 2 (r |z| / |g|)^2,  x + epsilon g + sqrt(2 epsilon) z; the released code takes
    # the norms' means over the batch.
    sde, model = VESDE(), gaussian((2, 5, 7))
    t = torch.tensor([0.6], dtype=torch.float64)
    x, z = seeded(8)(torch.empty(3, 2, 5, 7).double()), seeded(9)(torch.empty(3, 2, 5, 7).double())
    score = model.score(x, 1.0, sde.scales(t[0])[1])
    above, below = z.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
    if norms == "batch":
        above, below = above.mean().expand(3), below.mean().expand(3)
    epsilon = (2 * (0.16 * above / below) ** 2).reshape(3, 1, 1, 1)
    solver = AnnealedLangevin(snr=0.16, norms=norms, denoise=False)
    end = solver(model, sde, x, t, noise=lambda like: z)
    torch.testing.assert_close(end, x + epsilon * score + (2 * epsilon).sqrt() * z, rtol=1e-10, atol=1e-12)


def test_langevin_ends_with_the_denoised_when_asked() -> None:
    sde, model, x = VESDE(), gaussian((2,)), torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    ts = grids.sigmas(sde, [2.0, 1.0])
    raw = AnnealedLangevin(steps=2, denoise=False)(model, sde, x, ts, noise=torch.ones_like)
    end = AnnealedLangevin(steps=2)(model, sde, x, ts, noise=torch.ones_like)
    torch.testing.assert_close(end, model(raw, 1.0, 1.0), rtol=1e-10, atol=1e-12)


# What annealing is for


def test_annealed_langevin_finds_the_weights_of_two_modes_and_plain_langevin_does_not() -> None:
    # Song and Ermon 2019, Section 3.2.2 and Fig. 3: 0.2 N((-5, -5), I) + 0.8 N((5, 5), I), ten levels from 20 to 1, a
    # hundred steps of 0.1 a level, against a thousand at the last level alone. With 2000 chains a weight has a standard
    # error of 0.009: 0.05 is more than five of them.
    means = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
    model = GaussianMixture(means, torch.ones(2).double(), torch.tensor([0.2, 0.8]).double())
    sde, noise = VESDE(sigma_min=1.0, sigma_max=20.0), seeded(10)
    levels = np.geomspace(20, 1, 10).tolist()
    x = 16 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64) - 8

    def weight(solver: Solver, levels: list[float]) -> float:
        return float((solver(model, sde, x, grids.sigmas(sde, levels), noise=noise).sum(1) > 0).double().mean())

    assert abs(weight(AnnealedLangevin(steps=100, step_size=0.1), levels) - 0.8) < 0.05
    plain = weight(AnnealedLangevin(steps=1000, step_size=0.1), levels[-1:])
    assert abs(plain - 0.5) < 0.05  # half the starts are nearer to each mode, whatever its weight


def test_a_shorter_step_in_place_of_a_rejected_one_bridges_its_brownian_motion() -> None:
    # W over 0.3, of variance 0.3, is split at 0.1: the parts have variances 0.1 and 0.2, are independent and add to W.
    def split_at(over: float, z: float) -> tuple[float, float]:
        kept = [[(0.3, torch.tensor([over], dtype=torch.float64))]]
        z_row = torch.tensor([[z]], dtype=torch.float64)
        h, w = AdaptiveSDE()._increments(torch.tensor([0]), torch.tensor([0.1], dtype=torch.float64), kept, z_row)
        ((left, rest),) = kept[0]
        assert (float(h), left) == (pytest.approx(0.1), pytest.approx(0.2))
        assert float(w + rest) == pytest.approx(over)
        return float(w), float(rest)

    (a, b), (c, d) = split_at(1.0, 0.0), split_at(0.0, 1.0)
    assert 0.3 * a**2 + c**2 == pytest.approx(0.1)
    assert 0.3 * b**2 + d**2 == pytest.approx(0.2)
    assert 0.3 * a * b + c * d == pytest.approx(0.0, abs=1e-12)


def test_measured_norms_inflate_the_variance_as_the_docstring_says_and_warn() -> None:
    # Small steps: (1 + 2 / d)^2 = 1.266 at d = 16; snr^2 adds 0.3%, and 600 steps reach it to 1%. The mean square of
    # 4,000 samples of 16 numbers has a standard error of 0.6%.
    sde, d, generator = EDMSDE(), 16, torch.Generator().manual_seed(0)
    x = 2**0.5 * torch.randn(4000, d, generator=generator)
    langevin = AnnealedLangevin(steps=600, snr=0.05, norms="sample", denoise=False)
    model = BoundDenoiser(Gaussian(torch.zeros(d), torch.tensor(1.0)), None, len(x))
    schedule = Schedule(sde, torch.tensor([1.0]), x)
    with pytest.warns(UserWarning, match="norms='sample' of 16 dimensions makes the variance 1.3 times too large"):
        x = langevin.correct(model, x, schedule, 0, lambda x: torch.randn(x.shape, generator=generator))
    assert float(x.square().mean()) / 2 == pytest.approx((1 + 2 / d) ** 2, rel=0.04)
