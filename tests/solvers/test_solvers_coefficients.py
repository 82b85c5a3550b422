"""The numbers that solvers multiply with, against the integrals and linear systems that the papers derive them from.

mpmath computes the integrals in 50 digits, once by quadrature and once through the phi functions of the literature,
whose recursion loses 30 of them where steps are short.
"""

# ruff: noqa: E741 - l is half the log-SNR, as in the papers

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from oracles import PATHS, gaussian
from scipy.integrate import quad
from torch import Tensor

from scorefield.sde_lib import SDE, VPSDE
from scorefield.solvers import (
    BELM,
    DEIS,
    Adams,
    AnnealedLangevin,
    ConsistentAnnealed,
    DPMSolver,
    SASolver,
    Schedule,
    StochasticDPMSolver,
    UniPC,
    grids,
    variables,
)
from scorefield.solvers.multistep.exponential import Coefficients, exponential

# Half log-SNRs from -15 to 13, so that steps of 8 have room.
WIDE = VPSDE(beta_max=60.0, t_min=1e-12)
SIZES = (1e-6, 0.3, 8.0)
# Where the polynomial is known, in steps from t to s at 1: one point, Bashforth's, Moulton's.
NODES = (
    (0.0,),
    (0.0, -1.0),
    (1.0, 0.0),
    (0.0, -0.7, -1.1),
    (1.0, 0.0, -0.7),
    (0.0, -0.3, -0.5, -1.0),
    (1.0, 0, -0.5, -1),
)

sizes = pytest.mark.parametrize("h", SIZES)
both_predictions = pytest.mark.parametrize("predict", ["x0", "eps"])
taus = pytest.mark.parametrize("tau", [0.0, 0.5])


def schedule_at(half_log_snr: Sequence[float], sde: SDE = WIDE) -> Schedule:
    """A schedule with these half log-SNRs, sorted."""
    ts = sde.time(2 * torch.tensor(sorted(half_log_snr), dtype=torch.float64))
    return Schedule(sde, ts, torch.empty(0))


class Step:
    """A step of about h with its nodes: `schedule`, and its numbers as it has them, in many digits."""

    def __init__(self, h: float, nodes: Sequence[float]) -> None:
        at = sorted({0.0, 1.0, *nodes})
        # Around zero, where no scale is lost; the longest step goes from -4 to 4 and its past to -12.
        self.schedule = schedule_at([h * (node - 0.5) for node in at])
        index = {node: i for i, node in enumerate(at)}
        self.t, self.s = self.schedule.scalars(index[0.0]), self.schedule.scalars(index[1.0])
        self.nodes = [self.schedule.scalars(index[node]) for node in nodes]
        self.start, self.end = (mpmath.mpf(float(a.log_snr)) / 2 for a in (self.t, self.s))
        self.knots = [mpmath.mpf(float(node.log_snr)) / 2 for node in self.nodes]
        self.h = self.end - self.start

    def coefficients(self, predict: str, tau: float) -> Coefficients:
        return exponential(self.schedule, self.t, self.s, self.nodes, predict, tau=tau)

    def basis(self, j: int, l: Any) -> Any:
        out = mpmath.mpf(1)
        for k, other in enumerate(self.knots):
            if k != j:
                out *= (l - other) / (self.knots[j] - other)
        return out

    def tolerance(self) -> float:
        """Relative: the log-SNRs are doubles of size |l|, so their differences are good to 2e-16 |l| / h, and the
        Lagrange polynomials multiply that by their slopes, at most some ten."""
        return 1e-12 + 20 * 2.3e-16 * max(abs(float(knot)) for knot in (*self.knots, self.end)) / float(self.h)


def phi(k: int, z: Any) -> Any:
    """phi_0 = e^z,  phi_{k+1} = (phi_k - 1 / k!) / z  (Hochbruck and Ostermann 2010, Eq. 2.5)."""
    return mpmath.exp(z) if k == 0 else (phi(k - 1, z) - 1 / mpmath.factorial(k - 1)) / z


def assert_weights(line: Coefficients, expected: Sequence[Any], rtol: float) -> None:
    expected = [float(w) for w in expected]
    assert len(line.weights) == len(expected)
    np.testing.assert_allclose(line.weights, expected, rtol=0, atol=rtol * sum(map(abs, expected)))


@sizes
@pytest.mark.parametrize("nodes", NODES[:1] + NODES[3:6], ids=str)
@both_predictions
@taus
def test_weights_are_the_integrals_of_the_lagrange_polynomials(
    h: float, nodes: tuple[float, ...], predict: str, tau: float
) -> None:
    step, more = Step(h, nodes), 1 + tau**2
    alpha, sigma = float(step.s.alpha), float(step.s.sigma)
    with mpmath.workdps(30):

        def kernel(l: Any) -> Any:
            if predict == "x0":
                return alpha * more * mpmath.exp(more * (l - step.end))
            return -sigma * more * mpmath.exp(step.end - l)

        expected = [
            mpmath.quad(lambda l, j=j: kernel(l) * step.basis(j, l), [step.start, step.end]) for j in range(len(nodes))
        ]
    assert_weights(step.coefficients(predict, tau), expected, step.tolerance())


@pytest.mark.parametrize(("h", "nodes"), [(1e-3, NODES[5]), (2.0, NODES[4]), (2.0, NODES[6])])
@both_predictions
@taus
def test_weights_are_the_phi_functions_of_the_literature(
    h: float, nodes: tuple[float, ...], predict: str, tau: float
) -> None:
    # int_0^1 e^((1 - x) z) x^k dx = k! phi_{k+1}(z), over the step from 0 to 1.
    step, more = Step(h, nodes), 1 + tau**2
    with mpmath.workdps(60):
        z = -more * step.h if predict == "x0" else step.h
        scale = float(step.s.alpha) if predict == "x0" else -float(step.s.sigma)
        places = [(knot - step.start) / step.h for knot in step.knots]
        powers = mpmath.matrix([[place**k for k in range(len(places))] for place in places])
        inverse = powers**-1  # column j: the coefficients of the polynomial that is 1 at place j
        moments = [mpmath.factorial(k) * phi(k + 1, z) for k in range(len(places))]
        expected = [
            scale * more * step.h * sum(moments[k] * inverse[k, j] for k in range(len(places)))
            for j in range(len(places))
        ]
    assert_weights(step.coefficients(predict, tau), expected, step.tolerance())


@sizes
@both_predictions
@taus
def test_what_is_kept_and_the_noise_are_those_of_the_linear_process(h: float, predict: str, tau: float) -> None:
    # x0: d(x / sigma) = -tau^2 (x / sigma) dl + ... + sqrt(2) tau dw, so the variance is a decaying integral;
    # eps: d(x / alpha) = ... + sqrt(2) tau e^-l dw.
    step = Step(h, (0.0,))
    line = step.coefficients(predict, tau)
    with mpmath.workdps(30):
        ends = [step.start, step.end]
        if predict == "x0":
            keep = float(step.s.sigma / step.t.sigma) * float(mpmath.exp(-(tau**2) * step.h))
            inside = mpmath.quad(lambda l: 2 * tau**2 * mpmath.exp(2 * tau**2 * (l - step.end)), ends)
            noise = float(step.s.sigma) * float(mpmath.sqrt(inside))
        else:
            keep = float(step.s.alpha / step.t.alpha)
            inside = mpmath.quad(lambda l: 2 * tau**2 * mpmath.exp(-2 * l), ends)
            noise = float(step.s.alpha) * float(mpmath.sqrt(inside))
    assert line.of_x == pytest.approx(keep, rel=step.tolerance())
    assert line.noise == pytest.approx(noise, rel=step.tolerance())


@both_predictions
@taus
def test_a_constant_prediction_brings_it_to_the_marginal_that_it_means(predict: str, tau: float) -> None:
    # x0 known for certain: x_s given x0 is N(alpha_s x0, sigma_s^2) when x_t given x0 is N(alpha_t x0, sigma_t^2),
    # at any noise level. By eps: the noise of x_t is what it sees, so its mean answer is that of x0 = 0.
    step = Step(0.7, (0.0,))
    line, (t, s) = step.coefficients(predict, tau), (step.t, step.s)
    if predict == "x0":
        assert line.of_x * float(t.alpha) + line.weights[0] == pytest.approx(float(s.alpha), rel=1e-12)
        assert (line.of_x * float(t.sigma)) ** 2 + line.noise**2 == pytest.approx(float(s.sigma**2), rel=1e-12)
    elif tau == 0:
        assert line.of_x * float(t.sigma) + line.weights[0] == pytest.approx(float(s.sigma), rel=1e-12)


# The variables' readings as functions of half the log-SNR, by hand.
READINGS: dict[tuple[str, str], Callable[[float], float]] = {
    ("edm", "time"): lambda l: math.exp(-l),
    ("rectified", "time"): lambda l: 1 / (1 + math.exp(l)),
    ("vp", "sigma"): lambda l: math.exp(-l),
    ("vp", "soft_clipped"): lambda l: -2 * math.log((math.exp(-l) + 0.01) / (1 + math.exp(-l) / 20)),
}


@pytest.mark.parametrize(("path", "variable"), READINGS)
@both_predictions
@taus
def test_weights_in_another_variable_are_the_integrals_in_it(
    path: str, variable: str, predict: str, tau: float
) -> None:
    reading, more = READINGS[path, variable], 1 + tau**2
    places = [-1.3, -0.8, -0.6, 0.1]  # three in the past, and the end of a step of 0.7
    schedule = schedule_at(places, PATHS[path])
    t, s = schedule.scalars(2), schedule.scalars(3)
    for nodes in ((2,), (2, 1), (3, 2, 1), (2, 1, 0)):
        knots = [reading(places[k]) for k in nodes]

        def integrand(l: float, j: int, knots: list[float] = knots) -> float:
            basis = math.prod((reading(l) - k) / (knots[j] - k) for i, k in enumerate(knots) if i != j)
            if predict == "x0":
                return float(s.alpha) * more * math.exp(more * (l - places[3])) * basis
            return -float(s.sigma) * more * math.exp(places[3] - l) * basis

        expected = [quad(integrand, places[2], places[3], (j,), epsabs=0, epsrel=1e-12)[0] for j in range(len(nodes))]
        scales = [schedule.scalars(k) for k in nodes]
        line = exponential(schedule, t, s, scales, predict, tau=tau, variable=variables.find(variable))
        assert_weights(line, expected, 1e-9)  # a path's time() is good to some 1e-12, over differences of a half


CLASSICAL = {  # Bashforth's and Moulton's on equal steps; Hairer, Norsett and Wanner 1993, Section III.1
    (1, False): [1],
    (2, False): [3 / 2, -1 / 2],
    (3, False): [23 / 12, -16 / 12, 5 / 12],
    (4, False): [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    (1, True): [1 / 2, 1 / 2],
    (2, True): [1 / 2, 1 / 2],
    (3, True): [5 / 12, 8 / 12, -1 / 12],
    (4, True): [9 / 24, 19 / 24, -5 / 24, 1 / 24],
}


@pytest.mark.parametrize(("order", "corrector"), CLASSICAL)
@pytest.mark.parametrize(("predict", "tau"), [("x0", 0.0), ("eps", 0.7)])
def test_short_steps_have_the_classical_coefficients_of_adams(
    order: int, corrector: bool, predict: str, tau: float
) -> None:
    h = 1e-4
    schedule = schedule_at([h * k for k in range(5)])
    solver: Any = Adams(order, predict=predict) if tau == 0 else SASolver(order, tau, predict=predict)
    line = solver.correction(schedule, 3, order) if corrector else solver.coefficients(schedule, 3, order)
    at = schedule.scalars(4)
    scale = (float(at.alpha) if predict == "x0" else -float(at.sigma)) * (1 + tau**2) * h
    np.testing.assert_allclose(np.array(line.weights) / scale, CLASSICAL[order, corrector], atol=10 * h)


# UniPC


def unipc(order: int, corrector: bool, predict: str, variant: str, l: Sequence[float], at: Any) -> list[float]:
    """Zhao et al. 2023, Eq. 5 to 9, solved as it stands: l holds half log-SNRs, those of s and t last.

    With r_m = (l_m - l_t) / h, and r = 1 for s:  sum_m a_m r_m^(n-1) = b_n,  b_n = h^n phi_{n+1}(h) n! / (h^... B),
    and x_s = exact step with P_0 - scale B sum_m a_m (P_m - P_0) / r_m. For x0, h changes its sign (Appendix A).
    """
    h = l[-1] - l[-2]
    z = h if predict == "eps" else -h
    big = z if variant == "bh1" else math.expm1(z)
    ratios = [(l[-3 - m] - l[-2]) / h for m in range(order - 1)] + ([1.0] if corrector else [])
    n = len(ratios)
    right = [z * float(phi(k + 1, mpmath.mpf(z))) * math.factorial(k) / big for k in range(1, n + 1)]
    if n == 1:
        solved = np.array([0.5])  # Appendix F: a half, for any B
    else:
        solved = np.linalg.solve([[r ** (k - 1) for r in ratios] for k in range(1, n + 1)], right) if n else np.empty(0)
    scale = float(at.alpha) if predict == "x0" else float(at.sigma)
    differences = [-scale * big * a / r for a, r in zip(solved, ratios, strict=True)]
    own = -scale * math.expm1(z) - sum(differences)
    return [differences[-1], own, *differences[:-1]] if corrector else [own, *differences]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [False, True])
@both_predictions
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("places", [(-1.4, -1.0, -0.2, 0.3)])
def test_unipc_solves_the_papers_linear_system(
    order: int, corrector: bool, predict: str, variant: str, places: tuple[float, ...]
) -> None:
    schedule = schedule_at(places)
    solver = UniPC(order, corrector, predict, variant)
    line = solver.correction(schedule, 2, order) if corrector else solver.coefficients(schedule, 2, order)
    with mpmath.workdps(50):
        expected = unipc(order, corrector, predict, variant, places, schedule.scalars(3))
    assert_weights(line, expected, 1e-10)
    exact = exponential(schedule, schedule.scalars(2), schedule.scalars(3), [schedule.scalars(2)], predict)
    assert line.of_x == exact.of_x


# DPM-Solver of order 3


@both_predictions
def test_released_dpm_solver_of_order_3_has_the_codes_coefficients(predict: str) -> None:
    # multistep_dpm_solver_third_update, line by line, on predictions that are unit vectors.
    places = (-0.9, -0.5, 0.1, 0.4)
    schedule = schedule_at(places)
    m2, m1, m0 = np.eye(3)
    h_1, h_0, h = np.diff(places)
    r0, r1 = h_0 / h, h_1 / h
    first, second = (m0 - m1) / r0, (m1 - m2) / r1
    d1, d2 = first + r0 / (r0 + r1) * (first - second), (first - second) / (r0 + r1)
    if predict == "x0":
        alpha, e = float(schedule.scalars(3).alpha), math.expm1(-h)
        out = -alpha * e * m0 + alpha * (e / h + 1) * d1 - alpha * ((e + h) / h**2 - 0.5) * d2
    else:
        sigma, e = float(schedule.scalars(3).sigma), math.expm1(h)
        out = -sigma * e * m0 - sigma * (e / h - 1) * d1 - sigma * ((e - h) / h**2 - 0.5) * d2
    line = DPMSolver(3, predict=predict, released=True).coefficients(schedule, 2, 3)
    np.testing.assert_allclose(line.weights, out[::-1], rtol=1e-9)


@both_predictions
def test_singlestep_dpm_solver_of_order_3_is_the_papers(predict: str) -> None:
    # Lu et al. 2022, DPM-Solver, Alg. 2, with r1 = 1/3 and r2 = 2/3; for x0 the same with -h, as the authors' code.
    places = (-0.5, 0.4)
    sde, model, h = WIDE, gaussian((2,)), 0.9
    a, s = scales_between(places, 0), scales_between(places, 1)
    x = torch.tensor([[0.3, -1.2], [1.0, 0.5]], dtype=torch.float64)

    def ask(y: Tensor, k: int) -> Tensor:
        alpha, sigma = torch.tensor([a[k], s[k]], dtype=torch.float64)
        denoised = model(y, alpha, sigma)
        return denoised if predict == "x0" else (y - alpha * denoised) / sigma

    z = -h if predict == "x0" else h
    keep = [s[k] / s[0] if predict == "x0" else a[k] / a[0] for k in range(4)]
    scale = [a[k] if predict == "x0" else s[k] for k in range(4)]
    r1, r2 = 1 / 3, 2 / 3
    first = ask(x, 0)
    u1 = keep[1] * x - scale[1] * math.expm1(r1 * z) * first
    d1 = ask(u1, 1) - first
    inner = math.expm1(r2 * z) / (r2 * z) - 1
    u2 = keep[2] * x - scale[2] * math.expm1(r2 * z) * first - scale[2] * r2 / r1 * inner * d1
    d2 = ask(u2, 2) - first
    expected = keep[3] * x - scale[3] * math.expm1(z) * first - scale[3] / r2 * (math.expm1(z) / z - 1) * d2
    ts = sde.time(2 * torch.tensor(places, dtype=torch.float64))
    end = DPMSolver(3, multistep=False, predict=predict)(model, sde, x, ts)
    torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-10)


def scales_between(places: tuple[float, float], which: int) -> list[float]:
    """Alphas (0) or sigmas (1) at the ends of a step and at its thirds."""
    half = torch.linspace(*places, 4, dtype=torch.float64)
    return WIDE.scales(WIDE.time(2 * half))[which].tolist()


@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_stochastic_dpm_solver_of_order_2_is_sde_dpm_solver_pp_2m(eta: float) -> None:
    # Lu et al. 2022, DPM-Solver++, Section 5:  sigma_s / sigma_t e^-h x + alpha_s (1 - e^-2h) D + ...,
    # D = D_0 + (D_0 - D_1) / (2 r), r the step before over this one; with e^(-eta h) and e^(-(1 + eta) h).
    places = (-0.9, -0.5, 0.1)
    schedule = schedule_at(places)
    (h_0, h), (t, s) = np.diff(places), (schedule.scalars(1), schedule.scalars(2))
    line = StochasticDPMSolver(2, eta).coefficients(schedule, 1, 2)
    whole, r = float(s.alpha) * -math.expm1(-(1 + eta) * h), h_0 / h
    assert line.of_x == pytest.approx(float(s.sigma / t.sigma) * math.exp(-eta * h), rel=1e-10)
    assert line.weights == pytest.approx((whole * (1 + 1 / (2 * r)), -whole / (2 * r)), rel=1e-10)
    assert line.noise == pytest.approx(float(s.sigma) * math.sqrt(-math.expm1(-2 * eta * h)), rel=1e-10)


# BELM


@pytest.mark.parametrize("path", ["vp", "ddpm-cosine"])
def test_belm_is_the_explicit_midpoint_rule_in_the_log_snr(path: str) -> None:
    # z_{i+1} = r^2 z_{i-1} + (1 - r^2) z_i + h (1 + r) dz/dl by hand, from the eps and x0 of a Gaussian: exact for
    # parabolas in l, whatever the steps.
    sde, model = PATHS[path], gaussian((2,))
    for middle in (-2.0, 0.1, 2.0):
        half = torch.tensor([middle - 0.4, middle, middle + 0.3], dtype=torch.float64)
        ts = sde.time(2 * half)
        (a0, a1, a2), (s0, s1, s2) = sde.scales(ts)
        x0, x1 = torch.tensor([[[0.3, -1.0]], [[0.4, -0.7]]], dtype=torch.float64)
        denoised = model(x1, a1, s1)
        eps = (x1 - a1 * denoised) / s1
        size = torch.sqrt(a1**2 + s1**2)
        slope = -a1 * s1 / size**2 * (a1 * eps - s1 * denoised) / size
        h, r = 0.3, 0.3 / 0.4
        z = r**2 * x0 / torch.hypot(a0, s0) + (1 - r**2) * x1 / size + h * (1 + r) * slope
        end, before = BELM().pair(model, sde, x0, ts, x1)
        torch.testing.assert_close(end, z * torch.hypot(a2, s2), rtol=1e-7, atol=1e-9)
        assert torch.equal(before, x1)
        # The rule is exact for z = 1, l and l^2.
        for power, value, rate in ((0, [1, 1, 1], 0), (1, half, 1), (2, half**2, 2 * half[1])):
            rule = r**2 * value[0] + (1 - r**2) * value[1] + h * (1 + r) * rate
            assert float(rule) == pytest.approx(float(value[2]), abs=1e-12), power


# DEIS and DDIM


def test_deis_of_order_2_has_the_closed_form_of_diffusers() -> None:
    # DEISMultistepScheduler, log-rho, order 2: with the antiderivative F(t, b, c) = t (log t - log c - 1) / (log b -
    # log c) in t = rho = sigma / alpha,  x = alpha_s (x / alpha_t + coef_1 eps_0 + coef_2 eps_1).
    places = (-0.9, -0.5, 0.1)
    schedule = schedule_at(places)
    rho_1, rho_0, rho = (math.exp(-l) for l in places)

    def anti(t: float, b: float, c: float) -> float:
        return t * (-math.log(c) + math.log(t) - 1) / (math.log(b) - math.log(c))

    alpha = float(schedule.scalars(2).alpha)
    newest = alpha * (anti(rho, rho_0, rho_1) - anti(rho_0, rho_0, rho_1))
    older = alpha * (anti(rho, rho_1, rho_0) - anti(rho_0, rho_1, rho_0))
    assert DEIS(2).coefficients(schedule, 1, 2).weights == pytest.approx((newest, older), rel=1e-10)


def test_consistent_annealing_removes_one_and_a_half_times_the_least_share_and_at_most_all() -> None:
    # Of a step with n_s / n_t = e^-h:  least = 1 - e^-h,  and what is left of the next level's noise (1 - eta) / e^-h.
    for h, eta in ((1.5, 1.0), (0.2, 1.5 * (1 - math.exp(-0.2)))):
        schedule = schedule_at((-0.5, -0.5 + h))
        t, s, step = schedule.scalars(0), schedule.scalars(1), ConsistentAnnealed().coefficients(schedule, 0, 1)
        left = s.sigma * (1 - eta) * math.exp(h)
        assert step.of_x == pytest.approx(left / t.sigma, rel=1e-9, abs=1e-12)
        assert step.weights[0] == pytest.approx(s.alpha - t.alpha * left / t.sigma, rel=1e-9)
        assert step.noise == pytest.approx(math.sqrt(s.sigma**2 - left**2), rel=1e-9)


# NCSNv2's step


@pytest.mark.parametrize(("path", "steps", "levels"), [("ve", 1, 10), ("vp", 5, 100), ("edm", 100, 10)])
def test_chosen_step_of_annealed_langevin_keeps_the_variance_as_well_as_any(path: str, steps: int, levels: int) -> None:
    # Song and Ermon 2020, Technique 4: the variance of a Gaussian that arrives from the level above, gamma^2 sigma^2,
    # after that many steps should be sigma^2. By the recursion itself, for 20 000 sizes.
    sde = PATHS[path]
    ts = grids.geometric(sde, levels)
    draws = iter([1.0] + [0.0] * steps)
    # A denoiser that sees no noise leaves only the first draw's share, sqrt(2 epsilon).
    end = AnnealedLangevin(steps, None).correct(
        lambda x, alpha, sigma: x / alpha,
        torch.zeros(1, 1, dtype=torch.float64),
        Schedule(sde, ts, torch.empty(0)),
        0,
        lambda x: torch.full_like(x, next(draws)),
    )
    chosen = float((end / sde.scales(ts[0])[1]) ** 2) / 2  # epsilon in units of the level's variance
    gamma2 = math.exp(float(sde.log_snr(ts[-1]) - sde.log_snr(ts[0])) / (levels - 1))

    def excess(e: Any) -> Any:
        variance = gamma2 + 0 * e
        for _ in range(steps):
            variance = (1 - e) ** 2 * variance + 2 * e
        return abs(variance - 1)

    others = excess(np.concatenate([np.geomspace(1e-7, 1e-2, 10_000), np.linspace(1e-2, 1, 10_000)]))
    assert excess(chosen) <= others.min() * (1 + 1e-9) + 1e-12
