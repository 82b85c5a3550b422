"""Bounds of log-likelihood against Gaussians, whose gaps are known, and against the papers' formulas written out."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PATHS, batch, gaussian, mixture
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from scorefield.likelihood.bounds import dsm_bound, elbo, vlb
from scorefield.likelihood.decoders import Decoder, DiscretisedDecoder, GaussianDecoder, LevelDecoder
from scorefield.likelihood.density import Density
from scorefield.likelihood.quadrature import ChainSum
from scorefield.models.analytic import GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VPSDE, DiscreteVPSDE
from scorefield.solvers import PerSampleNoise, grids

paths = pytest.mark.parametrize("path", ["vp", "ve", "rectified"])


class Shifted:
    """A model whose noise prediction is off by a constant delta."""

    def __init__(self, model: GaussianMixture, delta: Tensor) -> None:
        self.model, self.delta = model, delta

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.model.noise(x, alpha, sigma) + self.delta

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        alpha, sigma = (scale.reshape(-1, *(1,) * (x.ndim - 1)).to(x) for scale in (alpha, sigma))
        return (x - sigma * self.noise(x, alpha.flatten(), sigma.flatten())) / alpha


class Seeded:
    """A source of normals and of uniforms."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)

    def uniform(self, x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=self.generator, dtype=x.dtype)


def seeded(seed: int) -> dict[str, Any]:
    noise = Seeded(seed)
    return {"noise": noise, "uniform": noise.uniform}


# Expectations over normals without any chance: a quadratic's mean over +-sqrt(D) e_i is its mean over normals.


def cubature(dims: int) -> Tensor:
    """The 2 D points of equal weight whose means of quadratics are the normal's, (2 D, D), float64."""
    axes = math.sqrt(dims) * torch.eye(dims, dtype=torch.float64)
    return torch.cat([axes, -axes])


def exactly(bound: Callable[..., Density], model: Any, sde: SDE, x0: Tensor, **settings: Any) -> dict[str, Tensor]:
    """The expectation of each part of a bound (n,) for a Gaussian model in one dimension of images: x0 (n, D)."""
    points = cubature(x0.shape[1])
    copies = x0.repeat_interleave(len(points), 0)
    eps = points.repeat(len(x0), 1)
    result = bound(
        model,
        sde,
        copies,
        decodings=1,
        noise=lambda x: eps.to(x),
        uniform=lambda x: torch.full_like(x, 0.5),
        **settings,
    )
    parts = {name: part.reshape(len(x0), -1).mean(1) for name, part in result.parts.items()}
    return {**parts, "log_prob": result.log_prob.reshape(len(x0), -1).mean(1)}


def own_prior(model: GaussianMixture, sde: SDE) -> tuple[Tensor, Tensor]:
    """The Gaussian's exact marginal at t_max."""
    alpha, sigma = sde.scales(sde.t_max)
    return alpha * model.means[0], ((alpha * model.stds[0]) ** 2 + sigma**2).sqrt()


def decoder_gap(model: GaussianMixture, sde: SDE, x0: Tensor) -> Tensor:
    """E[log N(x0; D(x), sigma^2 / alpha^2) - log q(x0 | x)] over x at t_min: what that decoder loses, (n,).

    The posterior is N(D, v) with 1 / v = 1 / s^2 + alpha^2 / sigma^2, and D = m + k (x - alpha m).
    """
    alpha, sigma = sde.scales(sde.t_min)
    m, s = model.means[0], model.stds[0]
    k = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    v, variance = 1 / (1 / s**2 + (alpha / sigma) ** 2), (sigma / alpha) ** 2
    squared = ((1 - k * alpha) * (x0 - m)) ** 2 + (k * sigma) ** 2
    return ((v / variance).log() / 2 - squared / 2 * (1 / variance - 1 / v)).sum(1)


CUT = {"vp": replace(PATHS["vp"], t_min=0.1), "edm": replace(PATHS["edm"], t_min=0.3)}  # where the decoder's gap shows


@pytest.mark.parametrize("sde", [PATHS["vp"], PATHS["rectified"], *CUT.values()], ids=repr)
def test_the_elbo_of_a_gaussian_is_its_log_density_image_by_image(sde: SDE) -> None:
    # With the exact score and prior only the decoder loses. Midpoints of 400 strata err by 3e-5 at worst.
    model = gaussian((3,))
    x0 = torch.cat([batch(model, 3), torch.tensor([[2.5, -2.0, 0.3]], dtype=torch.float64)])
    expected = model.log_prob(x0) + decoder_gap(model, sde, x0)
    for bound in (dsm_bound, elbo):
        extra = {} if bound is dsm_bound else {"decoder": GaussianDecoder()}
        result = exactly(bound, model, sde, x0, draws=400, prior=own_prior(model, sde), **extra)
        assert_close(result["log_prob"], expected, rtol=0, atol=1e-4)
    if sde in CUT.values():
        assert float(decoder_gap(model, sde, x0).abs().max()) > 1e-2


@pytest.mark.parametrize("path", ["ve", "rectified"])
def test_random_draws_are_unbiased(path: str) -> None:
    # 5 standard errors of 4000 copies of two points, 4 comparisons: false alarm 2e-6.
    sde, model = PATHS[path], gaussian((3,))
    x0 = batch(model, 2)
    expected = model.log_prob(x0) + decoder_gap(model, sde, x0)
    result = dsm_bound(
        model, sde, x0.repeat_interleave(4000, 0), draws=24, decodings=2, prior=own_prior(model, sde), **seeded(1)
    )
    log_prob = result.log_prob.reshape(2, 4000)
    assert result.nfe == 26
    assert bool(((log_prob.mean(1) - expected).abs() < 5 * log_prob.std(1) / math.sqrt(4000)).all())


@pytest.mark.parametrize(("draws", "bound"), [(2, "continuous"), (7, "steps"), (24, "subset")])
def test_the_standard_error_is_conservative_and_close(bound: str, draws: int) -> None:
    # Its square's mean over 4000 copies of an image, against their variance. From n values a variance is good to
    # sqrt((kurtosis - 1) / n), 4.5 % at 2 draws and 2.7 % at 24: five of them below, false alarm 6e-7. The upper
    # limit allows for the different means of neighbouring strata: 2.8 times at 2 strata, 1.24 at 7.
    sde, model = PATHS["vp"], mixture((4,))
    x0 = batch(model, 1, seed=3).expand(4000, 4).clone()
    steps = {"continuous": None, "steps": draws, "subset": 60}[bound]
    ts = None if steps is None else grids.log_snr(sde, steps)
    result = elbo(model, sde, x0, decoder=GaussianDecoder(), ts=ts, draws=draws, decodings=3, **seeded(2))
    assert result.std_error is not None
    ratio = float(result.std_error.square().mean() / result.log_prob.var())
    below, above = {2: (0.77, 3.5), 7: (0.85, 1.4), 24: (0.87, 1.15)}[draws]
    assert below < ratio < above


@pytest.mark.parametrize(("draws", "decodings"), [(2, 4), (9, 3)])
def test_the_standard_error_of_equal_strata_is_exact(draws: int, decodings: int) -> None:
    # eps_hat = 0: |eps|^2 is chi-squared throughout, so that Var = range^2 D / (2 draws) + D / (2 decodings).
    sde, zero = EDMSDE(t_min=1.0, t_max=3.0), lambda x, alpha, sigma: x
    x0 = torch.full((4000, 5), 0.5, dtype=torch.float64)
    length = 2 * math.log(3)
    result = dsm_bound(zero, sde, x0, draws=draws, decodings=decodings, **seeded(3))
    assert result.std_error is not None
    variance = 5 / 2 * (length**2 / draws + 1 / decodings)
    # From 4000 values or more: five of sqrt((kurtosis - 1) / n) < sqrt(6 / n), false alarm 5e-6 in all.
    assert float(result.std_error.square().mean()) / variance == pytest.approx(1, abs=5 * math.sqrt(6 / 4000))
    assert float(result.log_prob.var()) / variance == pytest.approx(1, abs=5 * math.sqrt(6 / 4000))


def test_one_draw_has_no_standard_error() -> None:
    sde, model = PATHS["vp"], gaussian((3,))
    for draws, decodings in ((1, 4), (8, 1)):
        result = dsm_bound(model, sde, batch(model, 2), draws=draws, decodings=decodings)
        assert result.std_error is None


def test_a_mixtures_elbo_is_its_log_density_for_each_image_and_the_mean() -> None:
    # VP's prior is off by alpha_T^2 |x0|^2 / 2 = 2e-5 |x0|^2, and its decoder at sigma = 1e-3 by less than 1e-4.
    # z = (found - exact) / std_error, which is conservative, image by image: one of 40 beyond 5, false alarm 2e-5.
    sde, model = PATHS["vp"], mixture((3,))
    x0 = batch(model, 40, seed=4)
    result = dsm_bound(model, sde, x0, draws=2000, decodings=200, **seeded(5))
    gap = result.log_prob - model.log_prob(x0)
    assert result.std_error is not None
    assert float(result.std_error.max()) < 0.8
    assert float((gap / result.std_error).abs().max()) < 5
    assert abs(float(gap.mean())) < 5 * float(result.std_error.norm() / 40) + 1e-3


@paths
def test_a_wrong_noise_costs_half_its_square_over_the_log_snr(path: str) -> None:
    # E|eps* + delta - eps|^2 = E|eps* - eps|^2 + |delta|^2 over the data; the cross term is linear in x0 and vanishes
    # over the data's own cubature. At t_min the decoder's (x0 - D) alpha / sigma = eps_hat - eps adds the same cost.
    sde, model = PATHS[path], gaussian((3,))
    x0 = model.means[0] + model.stds[0] * cubature(3)
    delta = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    right = exactly(dsm_bound, model, sde, x0, draws=100)
    wrong = exactly(dsm_bound, Shifted(model, delta), sde, x0, draws=100)
    length = float(sde.log_snr(sde.t_min) - sde.log_snr(sde.t_max))
    for part, weight in (("prior", 0.0), ("diffusion", length), ("reconstruction", 1.0)):
        cost = float((right[part] - wrong[part]).mean())
        assert cost == pytest.approx(weight * float(delta.square().sum()) / 2, abs=1e-9)


# Chains of steps


@pytest.mark.parametrize(("path", "variance"), [("vp", "small"), ("rectified", "large")])
def test_the_vlb_becomes_the_elbo_at_order_one(path: str, variance: str) -> None:
    sde, model = PATHS[path], gaussian((2,))
    x0, decoder = batch(model, 2), GaussianDecoder()
    limit = exactly(elbo, model, sde, x0, draws=2000, decoder=decoder)["log_prob"]
    steps = [100, 200, 400]
    gaps = [
        limit - exactly(vlb, model, sde, x0, ts=grids.log_snr(sde, n), variance=variance, decoder=decoder)["log_prob"]
        for n in steps
    ]
    if variance == "small":  # each step's weight exceeds the integral's; the large variance fits some images better
        assert all(bool((gap > 0).all()) for gap in gaps)
    order = -np.polyfit(np.log(steps), np.log([float(gap.norm()) for gap in gaps]), 1)[0]
    assert order == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("draws", [None, 7, 200])
def test_the_elbo_of_steps_is_the_vlb_of_small_variances(draws: int | None) -> None:
    sde, model = PATHS["cosine"], mixture((2, 3))
    x0 = batch(model, 5)
    settings: dict[str, Any] = {"steps": 50, "draws": draws, "decoder": GaussianDecoder()}
    chain, ddpm = (bound(model, sde, x0, **settings, **seeded(6)) for bound in (elbo, vlb))
    assert_close(chain.log_prob, ddpm.log_prob, rtol=0, atol=0)
    assert chain.nfe == ddpm.nfe == {None: 54, 7: 11, 200: 54}[draws]


def test_a_subset_of_the_steps_is_unbiased() -> None:
    # Always the same eps, so that only the choice of the steps is random; 7 strata do not divide 50 steps.
    # 5 standard errors of 20000 values, false alarm 6e-7.
    sde, model = PATHS["rectified"], gaussian((2,))
    settings: dict[str, Any] = {"ts": grids.log_snr(sde, 50), "decoder": LevelDecoder(2), "noise": torch.ones_like}
    x0 = torch.full((20000, 2), 0.5, dtype=torch.float64)
    every = vlb(model, sde, x0[:1], **settings)
    assert float(ChainSum.of(sde, None, settings["ts"], x0).probability.sum()) == pytest.approx(1, abs=1e-12)
    some = vlb(model, sde, x0, draws=7, uniform=Seeded(7).uniform, **settings)
    values = some.parts["diffusion"]
    assert float(values.std()) > 0
    assert abs(float(values.mean() - every.parts["diffusion"])) < 5 * float(values.std()) / math.sqrt(20000)


@pytest.mark.parametrize(("path", "variance"), [("vp", "small"), ("ve", "large"), ("rectified", "large")])
def test_each_step_is_the_kl_of_its_two_gaussians(path: str, variance: str) -> None:
    # q(x_s | x_t, x0) by conditioning the joint of x_s and x_t, against torch's own KL.
    sde, model = PATHS[path], gaussian((3,))
    x0, ts = batch(model, 4), grids.log_snr(sde, 6).flip(0)
    noise = Seeded(8)
    result = vlb(model, sde, x0, ts=ts, variance=variance, decoder=GaussianDecoder(), noise=noise)
    same_noise = Seeded(8)
    total = torch.zeros(4, dtype=torch.float64)
    for s, t in itertools.pairwise(ts):
        (a_s, s_s), (a_t, s_t) = sde.scales(s), sde.scales(t)
        x_t = a_t * x0 + s_t * same_noise(x0)
        step = a_t / a_s
        added = s_t**2 - step**2 * s_s**2
        covariance = step * s_s**2
        std = (s_s**2 - covariance**2 / s_t**2).sqrt()
        means = [a_s * mean + covariance / s_t**2 * (x_t - a_t * mean) for mean in (x0, model(x_t, a_t, s_t))]
        wide = std if variance == "small" else added.sqrt()
        total += kl_divergence(Normal(means[0], std), Normal(means[1], wide)).sum(1)
    assert_close(-result.parts["diffusion"], total, rtol=1e-6, atol=1e-8)


def ddpm(model: GaussianMixture, betas: Tensor, x0: Tensor, noises: Iterator[Tensor], large: bool) -> dict[str, Tensor]:
    """Ho et al. 2020, after their `calc_bpd_loop`: indices 0 .. T - 1, images k / 127.5 - 1, nats."""
    alphas_cumprod = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1).double(), alphas_cumprod[:-1]])
    posterior_variance = betas * (1 - before) / (1 - alphas_cumprod)
    posterior_mean_coef1 = betas * before.sqrt() / (1 - alphas_cumprod)
    posterior_mean_coef2 = (1 - before) * (1 - betas).sqrt() / (1 - alphas_cumprod)
    log_variance = (betas if large else torch.cat([posterior_variance[1:2], posterior_variance[1:]])).log()

    def reverse(t: int) -> tuple[Tensor, Tensor]:
        x_t = alphas_cumprod[t].sqrt() * x0 + (1 - alphas_cumprod[t]).sqrt() * next(noises)
        eps = model.noise(x_t, alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt())
        x0_hat = (1 / alphas_cumprod[t]).sqrt() * x_t - (1 / alphas_cumprod[t] - 1).sqrt() * eps
        return tuple(posterior_mean_coef1[t] * x + posterior_mean_coef2[t] * x_t for x in (x0, x0_hat))

    diffusion = torch.zeros(len(x0)).double()
    for t in range(1, len(betas)):
        true_mean, mean = reverse(t)
        logvar1, logvar2 = posterior_variance[t].log(), log_variance[t]
        kl = 0.5 * (-1.0 + logvar2 - logvar1 + (logvar1 - logvar2).exp() + (true_mean - mean) ** 2 * (-logvar2).exp())
        diffusion -= kl.flatten(1).sum(1)
    _, mean = reverse(0)
    normal = Normal(mean, (0.5 * log_variance[0]).exp())
    cdf_plus, cdf_min = normal.cdf(x0 + 1 / 255), normal.cdf(x0 - 1 / 255)
    probability = torch.where(x0 < -0.999, cdf_plus, torch.where(x0 > 0.999, 1 - cdf_min, cdf_plus - cdf_min))
    variance = 1 - alphas_cumprod[-1]
    prior = 0.5 * (-1.0 - variance.log() + variance + alphas_cumprod[-1] * x0**2)
    return {
        "prior": -prior.flatten(1).sum(1),
        "diffusion": diffusion,
        "reconstruction": probability.clamp(min=1e-12).log().flatten(1).sum(1),
    }


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_ddpms_vlb_is_ddpms(variance: str) -> None:
    sde, model = DiscreteVPSDE(steps=1000), mixture((1, 2, 3))
    # The edges' cells too, where the exact denoiser may be off by many standard deviations of the small variance.
    levels = torch.tensor([0, 1, 60, 127, 128, 255]).reshape(1, 1, 2, 3)
    x0 = (torch.cat([levels, levels.flip(3), (levels * 7 + 5) % 256]) / 127.5 - 1).double()
    x0 = ((x0 + 1) * 127.5).round().double() / 127.5 - 1
    normals: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        normals.append(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        return normals[-1]

    generator = torch.Generator().manual_seed(9)
    unit = (torch.ones(()).double() * 0, torch.ones(()).double())
    decoder = DiscretisedDecoder(256, low=-1 - 1 / 255, high=1 + 1 / 255)
    if variance == "large":  # the paper's sigma_1^2 = beta_1, in units of x_0 where ours is beta_1 / alpha^2
        decoder = replace(decoder, std=sde.beta_start**0.5)
    result = vlb(model, sde, x0, steps=999, variance=variance, decoder=decoder, decodings=1, prior=unit, noise=noise)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = ddpm(model, betas, x0, iter(normals), large=variance == "large")
    assert result.nfe == len(normals) == 1000
    for name, value in expected.items():
        assert_close(result.parts[name], value, rtol=1e-7, atol=1e-7)
    assert_close(result.log_prob, sum(expected.values()), rtol=1e-7, atol=1e-7)


# ScoreFlow's theorem


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_the_dsm_bound_is_the_theorem_written_out(path: str) -> None:
    """Every expectation by cubature, the integral over time by Gauss-Legendre in the log-SNR, dt = d lambda / lambda'.

    The model is wrong on purpose, and the prior is the path's own.
    """
    sde, dims = PATHS[path], 3
    model = Shifted(gaussian((dims,)), torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64))
    x0, eps = batch(gaussian((dims,)), 3), cubature(dims)
    ends = [float(sde.log_snr(t)) for t in (sde.t_min, sde.t_max)]

    def at(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (n 2D, D), grad log q(x_t | x0) and log q, of each image's cubature."""
        alpha, sigma = sde.scales(t)
        copies = x0.repeat_interleave(len(eps), 0)
        q = Normal(alpha * copies, sigma)
        x = (alpha * copies + sigma * eps.repeat(len(x0), 1)).requires_grad_()
        log_q = q.log_prob(x).sum(1)
        (grad,) = torch.autograd.grad(log_q.sum(), x)
        return x.detach(), grad, log_q.detach()

    def mean(values: Tensor) -> Tensor:
        return values.reshape(len(x0), -1).mean(1)

    expected = mean(sde.prior_log_prob(at(torch.tensor(sde.t_max).double())[0]))
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for node, weight in zip(nodes, weights, strict=True):
        t = sde.time(torch.tensor(ends[1] + (ends[0] - ends[1]) * (node + 1) / 2, dtype=torch.float64))
        x, grad, _ = at(t)
        score = sde.score(model, x, t)
        alpha, sigma = sde.scales(t)
        f, g = sde.drift(t), sde.diffusion(t)
        rate = (g / sigma) ** 2  # |d lambda / dt|
        matching = g**2 * (score - grad).square().sum(1) - g**2 * grad.square().sum(1) - 2 * dims * f
        expected -= 0.5 * weight * (ends[0] - ends[1]) / 2 * mean(matching) / rate
    x, _, log_q = at(torch.tensor(sde.t_min).double())
    alpha, sigma = sde.scales(sde.t_min)
    expected += mean(Normal(model(x, alpha, sigma), sigma / alpha).log_prob(x0.repeat_interleave(len(eps), 0)).sum(1))
    expected -= mean(log_q)
    result = exactly(dsm_bound, model, sde, x0, draws=400)["log_prob"]
    assert_close(result, expected, rtol=0, atol=5e-4)


# Decoders


def centres(k: Tensor, levels: int, low: float, high: float) -> Tensor:
    return low + (high - low) * (k.double() + 0.5) / levels


@pytest.mark.parametrize(
    ("levels", "low", "high", "sigma"), [(2, -1.0, 1.0, 0.1), (17, 0.0, 3.0, 1e-3), (256, -1.0, 1.0, 2.0)]
)
@pytest.mark.parametrize("kind", [LevelDecoder, DiscretisedDecoder])
def test_probabilities_of_the_levels_sum_to_one(
    kind: Callable[..., Decoder], levels: int, low: float, high: float, sigma: float
) -> None:
    decoder = kind(levels, low, high)
    x0 = centres(torch.arange(levels), levels, low, high)[:, None]
    model = lambda x, alpha, sigma: 0.9 * x + 0.07  # noqa: E731
    scales = (torch.full((levels,), 0.8).double(), torch.full((levels,), sigma).double())
    for seen in (-0.3, 0.55, 1.4):
        log_p = decoder.log_prob(model, x0, torch.full((levels, 1), seen).double(), *scales)
        assert log_p.shape == (levels,)
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_levels_decoder_is_bayes_rule() -> None:
    # With equal levels beforehand, q(x | x_k) / sum_j q(x | x_j), by torch's densities and in each dimension alone.
    k = torch.tensor([[0, 3, 16], [8, 9, 1]])
    x0, sde, t = centres(k, 17, -1.0, 1.0), PATHS["cosine"], torch.tensor([0.02, 0.1]).double()
    alpha, sigma = sde.scales(t)
    x = sde.perturb(x0, t, Seeded(10)(x0))
    density = Normal(alpha[:, None, None] * centres(torch.arange(17), 17, -1.0, 1.0), sigma[:, None, None])
    probability = density.log_prob(x[..., None]).exp()
    expected = (probability.gather(2, k[..., None])[..., 0] / probability.sum(2)).log().sum(1)
    assert_close(LevelDecoder(17).log_prob(None, x0, x, alpha, sigma), expected, rtol=1e-10, atol=1e-12)


def test_long_rows_of_levels_are_cut_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    x0 = centres(torch.arange(17).repeat(2, 3), 17, -1.0, 1.0)
    alpha, sigma = torch.tensor([0.9, 0.8]).double(), torch.tensor([0.1, 0.2]).double()
    x = alpha[:, None] * x0 + sigma[:, None] * Seeded(11)(x0)
    uncut = LevelDecoder(17).log_prob(None, x0, x, alpha, sigma)
    monkeypatch.setattr("scorefield.likelihood.decoders.CHUNK", 17 * 5)
    assert_close(LevelDecoder(17).log_prob(None, x0, x, alpha, sigma), uncut, rtol=0, atol=0)


def test_a_cell_far_in_a_tail_keeps_its_digits() -> None:
    # The cell's far side adds nothing: Phi(-b) = phi(b) / b (1 - 1 / b^2 + 3 / b^4 - ...), the Mills ratio, at b = 150.
    decoder = DiscretisedDecoder(4, low=-2.0, high=2.0, std=0.01)
    x0 = torch.tensor([[-0.5], [0.5]]).double()  # cells (-1, 0) and (0, 1)
    one = torch.ones(2).double()
    result = decoder.log_prob(lambda x, alpha, sigma: torch.tensor([[1.5], [-1.5]]).double(), x0, x0, one, one)
    b = 150.0
    expected = -b * b / 2 - math.log(2 * math.pi) / 2 - math.log(b) + math.log1p(-1 / b**2 + 3 / b**4)
    assert result.tolist() == pytest.approx([expected, expected], rel=1e-9)


def test_the_discretised_decoder_is_sigma_over_alpha_wide_unless_told() -> None:
    x0 = centres(torch.tensor([[3], [9]]), 17, -1.0, 1.0)
    alpha, sigma = torch.tensor([0.9, 0.8]).double(), torch.tensor([0.1, 0.3]).double()
    model = lambda x, alpha, sigma: x  # noqa: E731
    mean = x0 + 0.1
    for std, own, step_std in (
        (sigma / alpha, None, None),
        (sigma, None, sigma),
        (torch.full((2,), 0.25), 0.25, sigma),
    ):
        normal = Normal(mean[:, 0], std.double())
        expected = (normal.cdf(x0[:, 0] + 1 / 17) - normal.cdf(x0[:, 0] - 1 / 17)).log()
        result = DiscretisedDecoder(17, std=own).log_prob(model, x0, mean, alpha, sigma, step_std)
        assert_close(result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decoder", [LevelDecoder(17), DiscretisedDecoder(17)])
def test_a_probability_is_refused_dequantised_data(decoder: Decoder) -> None:
    x0 = centres(torch.arange(17), 17, -1.0, 1.0).float()[None]
    model = lambda x, alpha, sigma: x  # noqa: E731
    assert elbo(model, VPSDE(), x0, decoder=decoder, draws=2).log_prob.shape == (1,)
    with pytest.raises(ValueError, match=r"expected x0 on the centres of 17 cells from -1 to 1, got one 0\.25 of"):
        elbo(model, VPSDE(), x0 + 0.25 * 2 / 17, decoder=decoder, draws=2)
    with pytest.raises(ValueError, match="a cell away"):  # beyond the last cell
        elbo(model, VPSDE(), x0 + 2.0, decoder=decoder, draws=2)


def test_levels_cost_what_counting_says() -> None:
    # A mixture of points on three levels is a distribution over them, and its bound is tight: at sigma = 0.002 the
    # levels' decoder is sure, whatever their frequencies.
    sde = EDMSDE()
    means = centres(torch.tensor([[2], [3], [11]]), 17, -1.0, 1.0)
    weights = torch.tensor([0.5, 0.25, 0.25]).double()
    model = GaussianMixture(means, torch.full((3,), 1e-6).double(), weights)
    for index in range(3):
        x0 = means[index : index + 1].expand(4000, 1).clone()
        prior = torch.zeros(1).double(), torch.tensor([80.0]).double()
        result = elbo(model, sde, x0, decoder=LevelDecoder(17), draws=32, prior=prior, **seeded(12))
        # 5 standard errors of the mean, false alarm 2e-6; the points' own spread in the prior of 80 is 1e-4.
        error = float(result.log_prob.std()) / math.sqrt(4000)
        assert abs(float(result.log_prob.mean()) - math.log(weights[index])) < 5 * error + 2e-4
        assert error < 0.02
        assert_close(result.parts["reconstruction"], torch.zeros(4000).double(), rtol=0, atol=1e-12)


# The prior


@pytest.mark.parametrize("path", ["edm", "rectified"])
def test_the_prior_is_the_kl_of_two_gaussians(path: str) -> None:
    sde, model = PATHS[path], gaussian((2, 3))
    x0 = batch(model, 3)
    alpha, sigma = sde.scales(sde.t_max)
    for prior in (None, own_prior(model, sde), (torch.tensor(0.3).double(), torch.tensor(2.0).double())):
        mean, std = prior or (torch.zeros(()).double(), sigma)
        end = Normal(alpha * x0, sigma.expand_as(x0))
        expected = -kl_divergence(end, Normal(mean.expand_as(x0), std.expand_as(x0))).flatten(1).sum(1)
        result = dsm_bound(model, sde, x0, draws=1, prior=prior)
        if prior is None:
            assert_close(result.parts["prior"], -sde.prior_kl(x0), rtol=1e-9, atol=0)
        assert_close(result.parts["prior"], expected, rtol=1e-8, atol=1e-10)
        assert_close(result.log_prob, sum(result.parts.values()), rtol=0, atol=1e-12)


def test_a_chain_may_begin_where_its_grid_says() -> None:
    sde, model = PATHS["vp"], gaussian((3,))
    x0 = batch(model, 2)
    ts = torch.tensor([0.01, 0.2, 0.6], dtype=torch.float64)
    result = vlb(model, sde, x0, ts=ts, decoder=GaussianDecoder())
    alpha, sigma = sde.scales(0.6)
    end, start = Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sde.scales(1.0)[1])
    assert_close(result.parts["prior"], -kl_divergence(end, start).sum(1), rtol=1e-9, atol=0)
    # Nothing but the order of the times distinguishes a falling grid.
    falling, rising = (vlb(model, sde, x0, ts=t, decoder=GaussianDecoder(), **seeded(1)) for t in (ts.flip(0), ts))
    assert_close(falling.log_prob, rising.log_prob, rtol=0, atol=0)


# Batches, shapes and what is refused


BOUNDS: dict[str, Callable[..., Density]] = {
    "elbo": lambda *a, **k: elbo(*a, decoder=GaussianDecoder(), draws=5, **k),
    "elbo-steps": lambda *a, **k: elbo(*a, decoder=GaussianDecoder(), steps=40, draws=5, **k),
    "dsm": lambda *a, **k: dsm_bound(*a, draws=5, **k),
    "vlb": lambda *a, **k: vlb(*a, decoder=GaussianDecoder(), steps=6, variance="large", **k),
}
bounds = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())


@bounds
@pytest.mark.parametrize(("shape", "dtype"), [((7,), torch.float64), ((1, 4, 4), torch.float32)], ids=str)
def test_an_images_bound_is_the_same_in_any_batch(
    bound: Callable[..., Density], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    sde, model = PATHS["cosine"], mixture(shape, dtype)
    x0 = batch(model, 4)
    noise, its_noise = PerSampleNoise(3, range(4)), PerSampleNoise(3, [2])
    state = torch.get_rng_state()
    together = bound(model, sde, x0, noise=noise, uniform=noise.uniform)
    single = bound(model, sde, x0[2:3], noise=its_noise, uniform=its_noise.uniform)
    assert torch.equal(torch.get_rng_state(), state)
    assert together.latent is None
    assert set(together.parts) == {"prior", "diffusion", "reconstruction"}
    assert together.std_error is not None
    for one, all_of_them in (
        (single.log_prob, together.log_prob),
        (single.std_error, together.std_error),
        *((single.parts[name], part) for name, part in together.parts.items()),
    ):
        assert all_of_them.shape == (4,)
        assert all_of_them.dtype == torch.float64
        assert_close(one, all_of_them[2:3], rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-4)


@bounds
def test_float32_costs_little(bound: Callable[..., Density]) -> None:
    # A bare function of x0, so that the noise it predicts is a difference over sigma.
    sde, model = PATHS["vp"], mixture((3,))
    bare = lambda x, alpha, sigma: model(x.double(), alpha, sigma).to(x)  # noqa: E731
    result = []
    for dtype in (torch.float32, torch.float64):
        source = Seeded(13)
        x0 = batch(model, 3).float().to(dtype)
        result.append(bound(
            bare, sde, x0, noise=lambda x, source=source: source(x.float()).to(x), uniform=source.uniform
        ))  # fmt: skip
    assert result[0].log_prob.dtype == torch.float64
    assert_close(result[0].log_prob, result[1].log_prob, rtol=1e-3, atol=1e-2)


def test_no_images_have_no_bounds_and_a_bound_keeps_no_graph() -> None:
    model = gaussian((3,))
    for bound in BOUNDS.values():
        result = bound(model, PATHS["vp"], torch.empty(0, 3, 8, 8))
        assert result.log_prob.shape == (0,)
        assert result.std_error is not None and result.std_error.shape == (0,)
        assert set(result.parts) == {"prior", "diffusion", "reconstruction"}
        assert not bound(model, PATHS["vp"], batch(model, 2).requires_grad_()).log_prob.requires_grad


def nan_at(index: int) -> Tensor:
    x0 = torch.zeros(4, 3)
    x0[index, 1] = math.nan
    return x0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m, s: dsm_bound(m, s, nan_at(2)), "NaN or infinity in 1 of 4 samples, the first at index 2"),
        (lambda x, m, s: dsm_bound(m, s, x / 0), "NaN or infinity in 4 of 4 samples, the first at index 0"),
        (lambda x, m, s: dsm_bound(m, s, x.long()), "expected floating-point x0 .* got torch.int64"),
        (lambda x, m, s: dsm_bound(m, s, x[:, 0]), r"expected x0 \(B, \*D\), got \(4,\)"),
        (lambda x, m, s: dsm_bound(m, s, x, draws=0), "expected draws of 1 or more, got 0"),
        (lambda x, m, s: dsm_bound(m, s, x, decodings=0), "expected decodings of 1 or more, got 0"),
        (lambda x, m, s: elbo(m, s, x, decoder=GaussianDecoder(), draws=None), "continuous time, got None"),
        (lambda x, m, s: elbo(m, s, x, decoder=GaussianDecoder(), steps=0), "steps to be at least 1, got 0"),
        (lambda x, m, s: vlb(m, s, x, decoder=GaussianDecoder(), steps=-2), "steps to be at least 1, got -2"),
        (lambda x, m, s: vlb(m, s, x, decoder=GaussianDecoder()), "expected steps or ts, got neither"),
        (
            lambda x, m, s: vlb(m, s, x, decoder=GaussianDecoder(), steps=3, ts=grids.uniform(s, 4)),
            "expected 4 times for 3 steps, got 5",
        ),
        (
            lambda x, m, s: vlb(m, s, x, decoder=GaussianDecoder(), ts=torch.tensor([0.5])),
            "at least two times, got 1",
        ),
        (
            lambda x, m, s: vlb(m, s, x, decoder=GaussianDecoder(), ts=torch.tensor([0.5, 1.5])),
            "expected times within",
        ),
        (
            lambda x, m, s: vlb(m, s, x, decoder=GaussianDecoder(), steps=3, variance="learned"),
            "expected variance 'small' or 'large', got 'learned'",
        ),
    ],
)
def test_what_cannot_be_bounded_is_refused(call: Callable[..., Density], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(4, 3), gaussian((3,)), VPSDE())


@pytest.mark.parametrize("bound", [elbo, dsm_bound, vlb], ids=lambda bound: bound.__name__)
def test_a_bound_tells_its_progress_and_prints_in_a_line(bound: Callable[..., Density]) -> None:
    sde, model, shares = VPSDE(), gaussian((2,)), list[float]()
    settings: dict[str, Any] = {"draws": 6} | ({} if bound is dsm_bound else {"decoder": GaussianDecoder()})
    settings |= {"steps": 4} if bound is vlb else {}
    result = bound(model, sde, batch(model, 3), progress=shares.append, **settings)
    points = 4 if bound is vlb else 6  # a chain takes each step once
    assert_close(shares, [i / (points + 4) for i in range(1, points + 1)] + [1.0])
    assert repr(result).startswith("Density(log_prob (3,), mean ")
    assert "tensor" not in repr(result)
