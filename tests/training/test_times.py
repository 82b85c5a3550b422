"""Importance-sampled times against the closed forms of their papers."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import PATHS
from torch import Generator, Tensor
from torch.testing import assert_close

from scorefield.configs.build import TIMES, build
from scorefield.likelihood import GaussianDecoder
from scorefield.models import Denoiser, precondition
from scorefield.sde_lib import SDE, VPSDE, CosineSDE, LearnedVP, RectifiedSDE, SubVPSDE
from scorefield.training import times
from scorefield.training.objectives.elbo import elbo_loss

U = (torch.arange(200, dtype=torch.float64) + 0.5) / 200  # one in each stratum


def ends(sde: SDE) -> tuple[float, float]:
    """Log-SNR next to the data, and at the noise."""
    return float(sde.log_snr(sde.t_min).detach()), float(sde.log_snr(sde.t_max).detach())


# ScoreFlow


def beta(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2


def of_vp(t: np.ndarray) -> np.ndarray:
    """g^2 / sigma^2 with g^2 = beta and sigma^2 = 1 - exp(-int beta)  (Song et al. 2021, Eq. 11)."""
    rate, integral = beta(t)
    return rate / -np.expm1(-integral)


def of_subvp(t: np.ndarray) -> np.ndarray:
    """With g^2 = beta (1 - exp(-2 int beta)) and sigma = 1 - exp(-int beta)  (Song et al. 2021, Eq. 12)."""
    rate, integral = beta(t)
    return rate * -np.expm1(-2 * integral) / np.expm1(-integral) ** 2


@pytest.mark.parametrize(("sde", "density"), [(VPSDE(), of_vp), (SubVPSDE(), of_subvp)])
def test_scoreflows_density_is_uniform_in_the_log_snr(sde: SDE, density: Callable[[np.ndarray], np.ndarray]) -> None:
    """The share of the integral of g^2 / sigma^2 up to each time: 40 panels of 10 nodes in log t err by 1e-13."""
    u = U[::10]
    t = build(TIMES, "scoreflow").position(sde, u)
    t = sde.time(ends(sde)[0] + (ends(sde)[1] - ends(sde)[0]) * t)

    def integral(end: float) -> float:
        edges = np.linspace(math.log(sde.t_min), math.log(end), 41)
        nodes, weights = np.polynomial.legendre.leggauss(10)
        half = np.diff(edges)[:, None] / 2
        at = np.exp((edges[:-1, None] + edges[1:, None]) / 2 + half * nodes)
        return float((half * density(at) * at * weights).sum())

    shares = torch.tensor([integral(float(each)) / integral(sde.t_max) for each in t], dtype=torch.float64)
    assert_close(shares, u, rtol=0, atol=1e-9)
    drawn = build(TIMES, "scoreflow")(sde, 200, Generator().manual_seed(0))
    assert torch.equal(drawn, times.log_snr(sde, 200, Generator().manual_seed(0)))


# i-DODE


def log_snr_of(sde: SDE, u: Tensor) -> Tensor:
    high, low = ends(sde)
    return high + (low - high) * times.idode.position(sde, u)


@pytest.mark.parametrize(
    "sde", [VPSDE(), CosineSDE(), CosineSDE(shift=-3.0), LearnedVP("linear"), LearnedVP("monotone", size=4)]
)
def test_on_a_variance_preserving_path_idodes_times_are_uniform_in_log_sigma_squared(sde: SDE) -> None:
    """Their closed form in g = -lambda:  g = -log((1 + e^-g0) e^(-Z u) - 1),  Z = log((1 + e^-g0) / (1 + e^-g1))."""
    g0, g1 = (-end for end in ends(sde))
    z = math.log1p(math.exp(-g0)) - math.log1p(math.exp(-g1))
    assert_close(-log_snr_of(sde, U), -(torch.expm1(math.log1p(math.exp(-g0)) - z * U)).log(), rtol=0, atol=1e-9)
    log_variance = -torch.log1p(log_snr_of(sde, U).exp())
    start, end = (-math.log1p(math.exp(-g)) for g in (g0, g1))
    assert_close((log_variance - start) / (end - start), U, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sde", [RectifiedSDE(), RectifiedSDE(t_min=1e-5, t_max=1 - 1e-5)])
def test_on_the_straight_line_idodes_times_have_their_cumulative(sde: SDE) -> None:
    """-2 (log(1 + e^(-g/2)) + 1 / (1 + e^(-g/2))) in g = -lambda."""
    first, last = (-line_integral(torch.tensor(-end, dtype=torch.float64)) for end in ends(sde))
    shares = (-line_integral(-log_snr_of(sde, U)) - first) / (last - first)
    assert_close(shares, U, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)
def test_idodes_weights_are_one_over_its_density(sde: SDE) -> None:
    """w(p) = dp / du at every position p(u), so that any loss keeps its mean; by central differences of u."""
    h = 1e-5
    position, ahead, behind = (times.idode.position(sde, U + step) for step in (0.0, h, -h))
    # h = 1e-5 is 1/500 of the first and the last share: the third derivative there gives (1/500)^2.
    assert_close(times.idode.weight_at(sde, position), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-9)
    high, low = ends(sde)
    density = sde.scales(sde.time(high + (low - high) * position))[0].square()
    constant = times.idode.weight_at(sde, position) * density
    assert_close(constant, constant[:1].expand_as(constant), rtol=1e-9, atol=0)
    whole = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(times.idode.position(sde, whole), whole)


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedSDE(), PATHS["ve"]], ids=["vp", "rectified", "ve"])
def test_the_mean_of_a_loss_does_not_depend_on_idodes_density(sde: SDE) -> None:
    """One draw in each of 20,000 strata: the error is that of a midpoint rule with a shift, below 5 of 1e-4.

    The loss is alpha^2 cos(lambda), as small as an error in eps where there is no signal.
    """
    n = 20_000
    t = times.idode(sde, n, Generator().manual_seed(0))
    assert t.dtype == torch.float64
    assert float(t.min()) >= sde.t_min and float(t.max()) <= sde.t_max
    loss = sde.scales(t)[0].square() * sde.log_snr(t).cos()
    high, low = ends(sde)
    every = sde.time(low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    expected = (sde.scales(every)[0].square() * sde.log_snr(every).cos()).mean()
    assert_close((times.idode.weight(sde, t) * loss).mean(), expected, rtol=0, atol=5e-4)


# The velocity


def vp_slope(t: Tensor) -> Tensor:
    """gamma' of VP, with gamma = log(exp(int beta) - 1)."""
    return (0.1 + 19.9 * t) / -torch.expm1(-(0.1 * t + 19.9 * t**2 / 2))


def line_slope(t: Tensor) -> Tensor:
    """gamma' of the straight line, with gamma = 2 log(t / (1 - t))."""
    return 2 / (t * (1 - t))


def vp_integral(g: Tensor) -> Tensor:
    """Of alpha^2 over gamma, from g to infinity."""
    return torch.log1p((-g).exp())


def line_integral(g: Tensor) -> Tensor:
    """Of alpha^2 over gamma, from g to infinity, but for a constant."""
    return 2 * (torch.log1p((-g / 2).exp()) + torch.sigmoid(g / 2))


@pytest.mark.parametrize(
    ("sde", "parameterisation", "slope", "integral"),
    [
        (VPSDE(), precondition.v, vp_slope, vp_integral),
        (RectifiedSDE(), precondition.flow, line_slope, line_integral),
    ],
    ids=["vp", "rectified"],
)
def test_the_bound_is_the_loss_of_the_velocity(
    sde: SDE,
    parameterisation: precondition.Precondition,
    slope: Callable[[Tensor], Tensor],
    integral: Callable[[Tensor], Tensor],
) -> None:
    """1/2 alpha^2 gamma' |v - v_hat|^2 with v = (eps - sigma z) / alpha on VP, and (eps - z) / alpha on the line.

    At i-DODE's times its factor is a constant, half of the integral of alpha^2 over gamma.
    """
    generator = Generator().manual_seed(0)
    x0, eps, start_eps = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    denoiser = Denoiser(lambda x, c_noise: torch.sin(2 * x) + c_noise[:, None], parameterisation)

    def both(t: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Our diffusion part, and |v - v_hat|^2 / D."""
        _, parts = elbo_loss(denoiser, sde, x0, t, eps, start_eps, decoder=GaussianDecoder(), importance=importance)
        alpha, sigma = (scale[:, None] for scale in sde.scales(t))
        z = alpha * x0 + sigma * eps
        v = (eps - (sigma if isinstance(sde, VPSDE) else 1) * z) / alpha
        c_in, _, _, c_noise = parameterisation(*sde.scales(t))
        return parts["diffusion"], (v - denoiser.net(c_in[:, None] * z, c_noise)).square().mean(1)

    t = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)
    diffusion, error = both(t)
    expected = sde.scales(t)[0].square() * slope(t) / 2 * error * (sde.t_max - sde.t_min)
    assert_close(diffusion, expected, rtol=1e-9, atol=0)

    t = times.idode(sde, 7, Generator().manual_seed(1))
    diffusion, error = both(t, times.idode.weight(sde, t))
    first, last = (integral(torch.tensor(-end, dtype=torch.float64)) for end in ends(sde))
    assert_close(diffusion, (first - last) / 2 * error, rtol=1e-9, atol=0)
