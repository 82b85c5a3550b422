"""Every path against closed forms written out here in 30 digits, numpy's cumulative products, scipy's PCHIP
and torch.distributions."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import mpmath as mp
import numpy as np
import pytest
import torch
from oracles import PATHS, SHAPES, batch, gaussian, mixture
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from scorefield.sde_lib import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    DiscreteVPSDE,
    RectifiedSDE,
    SubVPSDE,
    expand,
    predict_noise,
)

mp.mp.dps = 30
DTYPES = (torch.float32, torch.float64)

# What the library promises. Float32 rounds logs of size 10 to 1e-6; the rest is room for exp, sqrt and division.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Truth(NamedTuple):
    """alpha, sigma, f and g^2 at a time, by hand."""

    alpha: mp.mpf
    sigma: mp.mpf
    f: mp.mpf
    g2: mp.mpf


def vp(t: mp.mpf) -> Truth:
    """Song et al. 2021, Eq. 32-33: dx = -beta x / 2 dt + sqrt(beta) dw."""
    beta, decay = mp.mpf(0.1) + t * (20 - mp.mpf(0.1)), mp.exp(-(mp.mpf(0.1) * t + (20 - mp.mpf(0.1)) * t**2 / 2))
    return Truth(mp.sqrt(decay), mp.sqrt(1 - decay), -beta / 2, beta)


def sub_vp(t: mp.mpf) -> Truth:
    """Song et al. 2021, Eq. 14: dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 int beta))) dw."""
    alpha, _, f, beta = vp(t)
    return Truth(alpha, 1 - alpha**2, f, beta * (1 - alpha**4))


def ve(t: mp.mpf) -> Truth:
    """Song et al. 2021, Eq. 30: dx = s_min (s_max / s_min)^t sqrt(2 log(s_max / s_min)) dw."""
    ratio = mp.mpf(20) / mp.mpf(0.01)
    sigma = mp.mpf(0.01) * ratio**t
    return Truth(mp.mpf(1), sigma, mp.mpf(0), 2 * mp.log(ratio) * sigma**2)


def edm(t: mp.mpf) -> Truth:
    """Karras et al. 2022: dx = sqrt(2 t) dw."""
    return Truth(mp.mpf(1), t, mp.mpf(0), 2 * t)


def cosine(t: mp.mpf) -> Truth:
    """alpha = cos, sigma = sin of pi t / 2:  f = -alpha' / alpha, and g^2 = (sigma^2)' - 2 f sigma^2 = pi tan."""
    angle = mp.pi * t / 2
    return Truth(mp.cos(angle), mp.sin(angle), -mp.pi / 2 * mp.tan(angle), mp.pi * mp.tan(angle))


def shifted_cosine(t: mp.mpf) -> Truth:
    """sigma / alpha = tan(pi t / 2) e^(1/2) at shift -1, with alpha^2 + sigma^2 = 1, so that g^2 = -2 f."""
    ratio = mp.tan(mp.pi * t / 2) * mp.exp(mp.mpf(0.5))
    alpha2 = 1 / (1 + ratio**2)
    slope = mp.pi / 2 * (1 + mp.tan(mp.pi * t / 2) ** 2) * mp.exp(mp.mpf(0.5))
    return Truth(mp.sqrt(alpha2), ratio * mp.sqrt(alpha2), -ratio * slope * alpha2, 2 * ratio * slope * alpha2)


def rectified(t: mp.mpf) -> Truth:
    """alpha = 1 - t, sigma = t:  f = -1 / (1 - t),  g^2 = 2 t + 2 t^2 / (1 - t)."""
    return Truth(1 - t, t, -1 / (1 - t), 2 * t / (1 - t))


SHIFTED = CosineSDE(shift=-1.0)
CLOSED: dict[str, tuple[SDE, Callable[[mp.mpf], Truth]]] = {
    "vp": (PATHS["vp"], vp),
    "subvp": (PATHS["subvp"], sub_vp),
    "ve": (PATHS["ve"], ve),
    "edm": (PATHS["edm"], edm),
    "cosine": (PATHS["cosine"], cosine),
    "cosine-shifted": (SHIFTED, shifted_cosine),
    "rectified": (PATHS["rectified"], rectified),
}
DISCRETE = ("ddpm-linear", "ddpm-scaled-linear", "ddpm-cosine")

path = pytest.mark.parametrize("sde", [*PATHS.values(), SHIFTED], ids=[*PATHS, "cosine-shifted"])
few_paths = pytest.mark.parametrize(
    "sde", [PATHS[name] for name in ("vp", "ve", "ddpm-cosine")], ids=("vp", "ve", "ddpm-cosine")
)
closed = pytest.mark.parametrize(("sde", "truth"), CLOSED.values(), ids=CLOSED.keys())
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))


def times(sde: SDE, dtype: torch.dtype, first: float | None = None) -> Tensor:
    """Times of a path, even, and geometric towards both its ends, which are among them."""
    first = sde.t_min if first is None else first
    even, near = torch.linspace(0, 1, 60), torch.logspace(-6, -0.5, 60)
    shares = torch.cat([even, near, 1 - near]).double()
    return (first + shares * (sde.t_max - first)).to(dtype).clamp(first, sde.t_max)


def in_thirty_digits(truth: Callable[[mp.mpf], Truth], t: Tensor) -> list[Truth]:
    return [truth(mp.mpf(value)) for value in t.double().tolist()]


def relative(found: Tensor, exact: list[mp.mpf]) -> float:
    """The largest relative error; where the truth is zero the library has to say zero."""
    pairs = zip(found.double().tolist(), exact, strict=True)
    return max(float(abs(x - y) / abs(y)) if y != 0 else (0.0 if x == 0 else math.inf) for x, y in pairs)


# Closed forms


@dtypes
@closed
def test_scales_drift_and_diffusion_are_the_closed_forms(
    sde: SDE, truth: Callable[[mp.mpf], Truth], dtype: torch.dtype
) -> None:
    t = times(sde, dtype, first=1e-5)  # below t_min where the path starts later: defined there all the same
    exact = in_thirty_digits(truth, t)
    alpha, sigma = sde.scales(t)
    assert relative(alpha, [at.alpha for at in exact]) <= TOLERANCE[dtype]
    assert relative(sigma, [at.sigma for at in exact]) <= TOLERANCE[dtype]
    assert relative(sde.drift(t), [at.f for at in exact]) <= TOLERANCE[dtype]
    assert relative(sde.diffusion(t), [mp.sqrt(at.g2) for at in exact]) <= TOLERANCE[dtype]


@dtypes
@closed
def test_log_snr_is_the_closed_form(sde: SDE, truth: Callable[[mp.mpf], Truth], dtype: torch.dtype) -> None:
    t = times(sde, dtype, first=1e-5)
    exact = torch.tensor(
        [float(2 * mp.log(at.alpha / at.sigma)) for at in in_thirty_digits(truth, t)], dtype=torch.float64
    )
    # It crosses zero, so absolute as well as relative: it is a difference of two logs.
    assert_close(sde.log_snr(t).double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("make", [VPSDE, SubVPSDE, EDMSDE, CosineSDE, RectifiedSDE, VESDE])
def test_a_path_may_start_at_1e_5(make: Callable[..., SDE]) -> None:
    sde = make(t_min=1e-5)
    assert sde.t_min == 1e-5
    assert_close(sde.time(sde.log_snr(1e-5)), torch.tensor(1e-5, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("sde", "alpha", "g2"),
    [
        # beta constant: alpha = exp(-beta t / 2), g^2 = beta;  beta = b t: alpha = exp(-b t^2 / 4), g^2 = b t.
        (VPSDE(beta_min=3.0, beta_max=3.0), math.exp(-3.0 * 0.4 / 2), 3.0),
        (VPSDE(beta_min=0.0, beta_max=5.0), math.exp(-5.0 * 0.4**2 / 4), 5.0 * 0.4),
        (VESDE(sigma_min=0.1, sigma_max=10.0), 1.0, 2 * math.log(100.0) * (0.1 * 100.0**0.4) ** 2),
    ],
)
def test_the_constructor_arguments_are_those_of_the_equations(sde: SDE, alpha: float, g2: float) -> None:
    assert float(sde.scales(0.4)[0]) == pytest.approx(alpha, rel=1e-12)
    assert float(sde.diffusion(0.4)) ** 2 == pytest.approx(g2, rel=1e-12)
    assert float(sde.time(sde.log_snr(0.4))) == pytest.approx(0.4, rel=1e-12)


# The discrete betas


def betas_of(name: str) -> np.ndarray:
    """The published schedules, in numpy (Ho et al. 2020; Rombach et al. 2022; Nichol and Dhariwal 2021)."""
    if name == "ddpm-linear":
        return np.linspace(1e-4, 0.02, 1000)
    if name == "ddpm-scaled-linear":
        return np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2
    # As diffusers' betas_for_alpha_bar: 1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), at most 0.999.
    bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(1000)])


@dtypes
@pytest.mark.parametrize("name", DISCRETE)
def test_timestep_k_of_a_ddpm_is_time_k_plus_one_over_steps(name: str, dtype: torch.dtype) -> None:
    alpha_bar = np.cumprod(1 - betas_of(name))
    k = np.arange(1000)
    t = torch.tensor((k + 1) / 1000, dtype=dtype)
    alpha, sigma = PATHS[name].scales(t)
    # A float32 time misses its knot by up to 6e-8 t, which moves log alpha by |f| times that.
    moved = 6e-8 * t.double().numpy() * np.abs(PATHS[name].drift(t.double()).numpy())
    slack = TOLERANCE[dtype] + (moved if dtype == torch.float32 else 0)
    assert (np.abs(alpha.double().numpy() / np.sqrt(alpha_bar) - 1) <= slack).all()
    # 1 - alpha_bar as numpy sums it loses what alpha_bar rounds off: 1e-16 / sigma^2, at most 1e-12 here.
    assert (np.abs(sigma.double().numpy() / np.sqrt(1 - alpha_bar) - 1) <= TOLERANCE[dtype]).all()


@pytest.mark.parametrize(
    ("sde", "t", "ratio"),
    [
        # sigma / alpha as k-diffusion and the EDM paper's code print them for these models.
        (DiscreteVPSDE("scaled_linear", beta_start=0.00085, beta_end=0.012), 0.001, 0.0292),
        (DiscreteVPSDE("scaled_linear", beta_start=0.00085, beta_end=0.012), 1.0, 14.6146),
        (DiscreteVPSDE("linear"), 1.0, 157.407),
    ],
    ids=("stable-diffusion-first", "stable-diffusion-last", "ddpm-last"),
)
def test_noise_levels_are_the_published_ones(sde: SDE, t: float, ratio: float) -> None:
    # Their digits end there: half a unit of the last one, and float32 cumulative products behind it.
    assert math.exp(-float(sde.log_snr(t)) / 2) == pytest.approx(ratio, rel=2e-3 if ratio < 1 else 2e-5)


def pchip(betas: np.ndarray) -> tuple[PchipInterpolator, np.ndarray]:
    log_alpha = np.concatenate([[0.0], np.cumsum(np.log1p(-betas)) / 2])
    return PchipInterpolator(np.arange(len(betas) + 1), log_alpha), log_alpha


@dtypes
@pytest.mark.parametrize("name", DISCRETE)
def test_between_the_steps_log_alpha_is_scipys_pchip(name: str, dtype: torch.dtype) -> None:
    """On all intervals but the first and last, whose outer slopes are one-sided by different formulas."""
    sde, steps = PATHS[name], 1000
    interpolator, _ = pchip(betas_of(name))
    t = torch.linspace(1.001 / steps, 1 - 1.001 / steps, 5003, dtype=dtype)
    where = t.double().numpy() * steps
    log_alpha, slope = interpolator(where), interpolator.derivative()(where) * steps
    assert_close(sde.log_alpha(t).double().numpy(), log_alpha, rtol=TOLERANCE[dtype], atol=0)
    assert_close(sde.drift(t).double().numpy(), slope, rtol=TOLERANCE[dtype], atol=0)
    # alpha^2 + sigma^2 = 1:  g^2 = (sigma^2)' - 2 f sigma^2 = -2 f.
    assert_close(sde.diffusion(t).double().numpy(), np.sqrt(-2 * slope), rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_last_interval_ends_with_the_last_betas_slope(name: str) -> None:
    """Its cubic by hand: Hermite's basis on the values and slopes of its two ends."""
    betas = betas_of(name)
    interpolator, y = pchip(betas)
    left, right, rise = float(interpolator.derivative()(999)), float(np.log1p(-betas[-1]) / 2), y[1000] - y[999]
    s = np.linspace(0, 1, 33)
    value = (
        y[999] * (1 + 2 * s) * (1 - s) ** 2
        + y[1000] * s**2 * (3 - 2 * s)
        + left * s * (1 - s) ** 2
        + right * s**2 * (s - 1)
    )
    slope = 6 * s * (1 - s) * rise + left * (1 - s) * (1 - 3 * s) + right * s * (3 * s - 2)
    t = torch.tensor((999 + s) / 1000)
    # (999 + s) / 1000 and back loses 1e-13 of s; the slope may vary by its own size over the interval.
    assert_close(PATHS[name].log_alpha(t).numpy(), value, rtol=1e-10, atol=0)
    assert_close(PATHS[name].drift(t).numpy(), slope * 1000, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
def test_log_alpha_falls_everywhere(name: str) -> None:
    t = torch.linspace(0, 1, 20011, dtype=torch.float64)
    assert bool((PATHS[name].log_alpha(t).diff() < 0).all())


def test_own_betas_and_fewer_steps() -> None:
    betas = [0.1, 0.3, 0.2, 0.5]
    sde = DiscreteVPSDE(betas)
    assert (sde.steps, sde.t_min, sde.t_max) == (4, 0.25, 1.0)
    alpha = sde.scales(torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))[0]
    assert_close(alpha.square().numpy(), np.cumprod(1 - np.array(betas)), rtol=1e-13, atol=0)
    assert DiscreteVPSDE("linear", steps=50).t_min == 1 / 50
    assert float(DiscreteVPSDE("linear", steps=2).scales(1.0)[0]) == pytest.approx(
        math.sqrt((1 - 1e-4) * 0.98), rel=1e-12
    )


@pytest.mark.parametrize("betas", ["quadratic", [0.1], [0.1, 1.0], [0.0, 0.1], [-0.1, 0.2], [0.1, math.nan]])
def test_betas_that_are_none_are_refused(betas: str | list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        DiscreteVPSDE(betas)


# The inverse of the log-SNR


@dtypes
@path
def test_time_undoes_log_snr(sde: SDE, dtype: torch.dtype) -> None:
    t = times(sde, dtype)
    back = sde.time(sde.log_snr(t))
    # lambda is good to a few roundings of its size, and an error in lambda moves t by 1 / |dlambda/dt| = sigma^2 / g^2.
    exact = t.double()
    per_lambda = (sde.scales(exact)[1] / sde.diffusion(exact)).square()
    unit = torch.finfo(dtype).eps
    allowed = unit * (16 * (1 + sde.log_snr(exact).abs()) * per_lambda + 4 * exact)
    assert back.dtype == dtype
    assert back.shape == t.shape
    assert bool(((back.double() - exact).abs() <= allowed).all())


@few_paths
def test_time_of_one_number_and_of_a_float(sde: SDE) -> None:
    t = 0.3 * sde.t_min + 0.7 * sde.t_max
    log_snr = sde.log_snr(t)
    assert sde.time(log_snr).shape == ()
    assert sde.time(float(log_snr)).dtype == torch.float64
    assert float(sde.time(float(log_snr))) == pytest.approx(t, rel=1e-10)
    assert float(sde.time(log_snr)) == pytest.approx(t, rel=1e-10)


@dtypes
@pytest.mark.parametrize("beyond", [1e4])
@few_paths
def test_times_beyond_the_path_go_to_its_ends(sde: SDE, dtype: torch.dtype, beyond: float) -> None:
    ends = sde.time(torch.tensor([beyond, -beyond], dtype=dtype))
    # To a rounding: bisection may stop at the neighbour.
    assert_close(ends, torch.tensor([sde.t_min, sde.t_max], dtype=dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-15)


@few_paths
def test_bisection_agrees_with_the_closed_inverse(sde: SDE) -> None:
    log_snr = torch.linspace(
        float(sde.log_snr(sde.t_max)) - 1, float(sde.log_snr(sde.t_min)) + 1, 101, dtype=torch.float64
    )
    # Float64 log-SNRs of size 20 are good to 1e-14; times follow to 1e-12 of the path's length.
    assert_close(SDE.time(sde, log_snr), sde.time(log_snr), rtol=1e-10, atol=1e-12 * sde.t_max)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "edm", "cosine", "rectified"])
def test_these_paths_have_a_closed_inverse(name: str) -> None:
    assert type(PATHS[name]).time is not SDE.time


# Shapes, dtypes and graphs


@few_paths
def test_times_come_as_floats_scalars_and_batches(sde: SDE) -> None:
    values = [0.3 * sde.t_max, 0.5 * sde.t_max, 0.9 * sde.t_max]
    many = torch.tensor(values, dtype=torch.float64)
    for function in (sde.drift, sde.diffusion, sde.log_snr, lambda t: sde.scales(t)[0], lambda t: sde.scales(t)[1]):
        of_batch = function(many)
        assert of_batch.shape == (3,)
        for value, each in zip(values, of_batch, strict=True):
            assert function(value).shape == function(torch.tensor(value)).shape == ()
            assert function(value).dtype == torch.float64
            assert_close(function(value), each, rtol=1e-13, atol=0)
            assert_close(function(torch.tensor(value, dtype=torch.float64)), each, rtol=1e-13, atol=0)


@dtypes
@few_paths
def test_results_follow_the_dtype_of_the_time(sde: SDE, dtype: torch.dtype) -> None:
    t = torch.tensor([0.2, 0.7], dtype=dtype) * sde.t_max
    for result in (*sde.scales(t), sde.log_snr(t), sde.drift(t), sde.diffusion(t), sde.time(sde.log_snr(t))):
        assert result.dtype == dtype


@few_paths
def test_results_carry_no_graph_when_nothing_asks_for_one(sde: SDE) -> None:
    t = torch.tensor([0.2, 0.7], dtype=torch.float64) * sde.t_max
    for result in (*sde.scales(t), sde.log_snr(t), sde.drift(t), sde.diffusion(t), sde.time(sde.log_snr(t))):
        assert not result.requires_grad
    assert not t.requires_grad
    assert t.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@few_paths
def test_drift_and_diffusion_do_not_depend_on_the_grad_mode(sde: SDE, mode: Callable[[], torch.no_grad]) -> None:
    t = torch.tensor([0.2, 0.7], dtype=torch.float64) * sde.t_max
    outside = sde.drift(t), sde.diffusion(t), sde.drift(0.3), sde.diffusion(0.3)
    with mode():
        inside = sde.drift(t), sde.diffusion(t), sde.drift(0.3), sde.diffusion(0.3)
        made_inside = torch.tensor([0.2, 0.7], dtype=torch.float64) * sde.t_max
        assert_close(sde.drift(made_inside), outside[0], rtol=0, atol=0)
    assert_close(inside, outside, rtol=0, atol=0)
    assert not any(result.requires_grad for result in inside)


def test_a_discrete_path_first_used_in_inference_mode_works_outside_it() -> None:
    sde, t = DiscreteVPSDE("linear"), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        sde.drift(0.5)
    sde.log_snr(t).backward()  # its cubics are cached, and must not stay inference tensors
    assert_close(t.grad, -(sde.diffusion(0.5) / sde.scales(0.5)[1]).square())


@few_paths
def test_gradients_pass_to_the_time(sde: SDE) -> None:
    # Off the knots of the discrete paths, where the drift has a corner.
    t = (torch.tensor([0.3003, 0.7004], dtype=torch.float64) * sde.t_max).requires_grad_()
    h = 1e-5 * sde.t_max
    (slope,) = torch.autograd.grad(sde.diffusion(t).sum(), t)
    central = (sde.diffusion(t.detach() + h) - sde.diffusion(t.detach() - h)) / (2 * h)
    # Central differences: h^2 for the truncation and 1e-11 for the rounding, both relative.
    assert_close(slope, central, rtol=1e-5, atol=1e-8)


# Perturbation, score and prior


@pytest.mark.parametrize("shape", [(), SHAPES[2]], ids=str)
@few_paths
def test_perturb_is_alpha_x0_plus_sigma_eps_in_any_rank(sde: SDE, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, *shape, generator=generator).unbind(0)
    t = torch.tensor([0.2, 0.5, 0.9]) * sde.t_max
    found = sde.perturb(x0, t, eps)
    for i in range(3):
        alpha, sigma = (float(scale) for scale in sde.scales(float(t[i])))
        by_hand = alpha * x0[i].double() + sigma * eps[i].double()
        # Float32: the scales to 1e-6, and cancellation only as far as the two terms' sizes.
        assert_close(found[i].double(), by_hand, rtol=1e-5, atol=1e-6 * (alpha + 4 * sigma))
        assert_close(sde.perturb(x0, float(t[i]), eps)[i], found[i], rtol=1e-5, atol=1e-6 * (alpha + 4 * sigma))
    assert found.dtype == torch.float32
    assert found.shape == x0.shape
    assert sde.perturb(x0.double(), t, eps.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
@few_paths
def test_score_of_a_gaussian_is_that_of_torch_distributions(sde: SDE, shape: tuple[int, ...]) -> None:
    model = gaussian(shape)
    x = 2 * batch(model, 3)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64) * sde.t_max
    alpha, sigma = (scale.reshape(3, *(1,) * len(shape)) for scale in sde.scales(t))
    marginal = Normal(alpha * model.means, torch.sqrt((alpha * model.stds) ** 2 + sigma**2))
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(marginal.log_prob(leaf).sum(), leaf)
    assert_close(sde.score(model, x, t), score, rtol=1e-9, atol=1e-12)
    # Without a `noise` to ask, through the denoiser alone: (x - alpha D) / sigma loses 1e-16 |x| / sigma.
    assert_close(sde.score(lambda x, a, s: model(x, a, s), x, t), score, rtol=1e-6, atol=1e-9)
    assert_close(sde.score(model, x, float(t[1]))[1], score[1], rtol=1e-9, atol=1e-12)


def test_score_passes_conditioning_to_the_denoiser() -> None:
    def denoiser(x: Tensor, alpha: Tensor, sigma: Tensor, shift: float) -> Tensor:
        return x + shift

    sde, x = PATHS["rectified"], torch.ones(2, 3, dtype=torch.float64)
    # (alpha D - x) / sigma^2 at alpha = sigma = 1/2, D = x + 3 and x = 1.
    assert_close(sde.score(denoiser, x, 0.5, shift=3.0), torch.full_like(x, (0.5 * 4 - 1) / 0.25))


def test_predict_noise_asks_a_denoiser_that_knows() -> None:
    class Knows:
        def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            raise AssertionError("asked for D")

        def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
            return 7 * x + shift

    one, x = torch.tensor(1.0), torch.ones(2, 3)
    assert_close(predict_noise(Knows(), x, one, one, shift=1.0), 8 * x)
    assert_close(predict_noise(lambda x, a, s: x / 2, x, one / 2, one / 4), (x - x / 4) * 4)


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
@few_paths
def test_prior_log_prob_is_that_of_torch_distributions(sde: SDE, shape: tuple[int, ...]) -> None:
    sigma = sde.scales(sde.t_max)[1]
    z = sigma * torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = Normal(torch.zeros_like(sigma), sigma).log_prob(z).flatten(1).sum(1)
    assert_close(sde.prior_log_prob(z), expected, rtol=1e-12, atol=1e-12)
    assert_close(sde.prior_log_prob(z.float()), expected.float(), rtol=1e-5, atol=1e-5)


@few_paths
def test_prior_kl_is_that_of_torch_distributions(sde: SDE) -> None:
    x0 = batch(mixture((3, 8, 8)), 4)
    alpha, sigma = sde.scales(sde.t_max)
    divergence = kl_divergence(Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sigma))
    # torch forms log(sigma_1 / sigma_2) and (a - 1 - log a) / 2, which leave 1e-16 a coordinate.
    assert_close(sde.prior_kl(x0), divergence.flatten(1).sum(1), rtol=1e-9, atol=1e-13)


@few_paths
def test_prior_is_the_noise_source_times_sigma(sde: SDE) -> None:
    seen: list[tuple[torch.Size, torch.dtype]] = []

    def noise(blank: Tensor) -> Tensor:
        seen.append((blank.shape, blank.dtype))
        return torch.arange(float(blank.numel()), dtype=blank.dtype).reshape(blank.shape)

    z = sde.prior((2, 3, 4), noise=noise, dtype=torch.float64)
    assert seen == [(torch.Size((2, 3, 4)), torch.float64)]
    sigma = float(sde.scales(sde.t_max)[1])
    assert_close(z, sigma * torch.arange(24.0, dtype=torch.float64).reshape(2, 3, 4), rtol=1e-12, atol=0)
    assert sde.prior((5, 2)).dtype == torch.float32
    assert sde.prior((5, 2)).shape == (5, 2)


@few_paths
def test_prior_has_the_variance_it_says(sde: SDE) -> None:
    torch.manual_seed(0)
    z = sde.prior((200, 100), dtype=torch.float64) / float(sde.scales(sde.t_max)[1])
    # 20000 normals: the mean within 5 / sqrt(n) and the variance within 5 sqrt(2 / n), false alarms 6e-7 each.
    assert abs(float(z.mean())) < 5 / math.sqrt(20000)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / 20000)


# The broadcasting helper


@pytest.mark.parametrize("shape", [(4,), *((4, *shape) for shape in SHAPES)], ids=str)
def test_expand_shapes_a_scale_to_multiply(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=torch.float64)
    per_sample = expand(torch.tensor([1.0, 2.0, 3.0, 4.0]), x)
    assert per_sample.dtype == torch.float64
    assert per_sample.ndim == x.ndim
    assert (per_sample * x).flatten(1).T[0].tolist() == [1.0, 2.0, 3.0, 4.0] if len(shape) > 1 else True
    for one in (torch.tensor(3.0), torch.tensor([3.0])):
        assert_close(expand(one, x) * x, 3 * x)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(4, 1), torch.ones(1, 4), torch.ones(2, 2), torch.ones(0)])
def test_expand_refuses_what_is_not_one_scale_or_one_a_sample(scale: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected a scale of shape \(\) or \(4,\).*pass one number"):
        expand(scale, torch.ones(4, 3, 2))


# Other people's paths


class Root(SDE):
    """alpha = exp(-t), sigma = sqrt(t):  f = -1,  g^2 = 1 + 2 t."""

    t_min, t_max = 0.01, 3.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -t

    def log_sigma(self, t: Tensor) -> Tensor:
        return t.log() / 2


@dtypes
def test_a_path_of_two_methods_has_everything(dtype: torch.dtype) -> None:
    sde, t = Root(), torch.linspace(0.01, 3.0, 50, dtype=dtype)
    rtol = TOLERANCE[dtype]
    assert_close(sde.drift(t), -torch.ones_like(t), rtol=rtol, atol=0)
    assert_close(sde.diffusion(t), torch.sqrt(1 + 2 * t), rtol=rtol, atol=0)
    assert_close(sde.log_snr(t), -2 * t - t.log(), rtol=rtol, atol=rtol)
    assert_close(sde.time(sde.log_snr(t)), t, rtol=rtol, atol=0)
    model = gaussian((2,), dtype)
    x = batch(model, 50)
    assert_close(sde.score(model, x, t), model.score(x, *sde.scales(t)))
    assert sde.prior((4, 2)).shape == (4, 2)
    assert_close(sde.prior_log_prob(torch.zeros(1, 2)), torch.tensor([-math.log(2 * math.pi * 3.0)]))


class Learned(nn.Module, SDE):
    """Variance preserving with log-SNR = 5 - w t, w a parameter."""

    t_min, t_max = 0.0, 1.0

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(10.0, dtype=torch.float64))

    def log_alpha(self, t: Tensor) -> Tensor:
        return nn.functional.logsigmoid(5 - self.w * t) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return nn.functional.logsigmoid(self.w * t - 5) / 2


def test_gradients_pass_to_the_parameters_of_a_learned_path() -> None:
    """f = -w sigma^2 / 2 and g^2 = w sigma^2, with sigma^2 = sigmoid(w t - 5)."""
    sde, t = Learned(), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    w = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    sigma2 = torch.sigmoid(w * t - 5)
    for found, by_hand in ((sde.drift(t), -w * sigma2 / 2), (sde.diffusion(t), (w * sigma2).sqrt())):
        assert_close(found, by_hand, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(found.sum(), sde.w)
        (expected,) = torch.autograd.grad(by_hand.sum(), w, retain_graph=True)
        assert_close(gradient, expected, rtol=1e-12, atol=0)
    with torch.no_grad():
        assert not sde.drift(t).requires_grad
        assert not sde.diffusion(t).requires_grad
    assert_close(sde.time(sde.log_snr(t)), t, rtol=1e-12, atol=0)


def test_a_learned_scale_that_stands_still_has_no_drift() -> None:
    class Loud(Learned):
        def log_alpha(self, t: Tensor) -> Tensor:
            return self.w + torch.zeros_like(t)

    assert_close(Loud().drift(torch.tensor([0.2, 0.5])), torch.zeros(2))


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError):
        SDE()  # type: ignore[abstract]


@path
def test_paths_are_frozen_and_equal_by_value(sde: SDE) -> None:
    assert replace(sde) == sde
    assert hash(replace(sde)) == hash(sde)
    with pytest.raises(AttributeError):
        sde.t_max = 2.0
