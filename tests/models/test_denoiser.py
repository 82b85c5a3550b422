"""Denoisers made of networks that know the answer, in every parameterisation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.likelihood import GaussianDecoder, Variational, dequantise, dsm_bound, elbo, log_likelihood, vlb
from scorefield.models import MLP, Denoiser, precondition
from scorefield.models.precondition import Precondition
from scorefield.sde_lib import VPSDE, predict_noise
from scorefield.solvers import DDIM, PerSampleNoise, grids
from scorefield.training import dsm_loss, train

# Variance preserving, exploding, straight-line, and EDM's ends: alpha and sigma.
SCALES = ((0.8, 0.6), (0.01, 0.99995), (1.0, 20.0), (0.999, 0.001))

SIGMA_DATA = 0.7


def edm_target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """Karras et al. 2022, Eq. 8, (x0 - c_skip y) / c_out at y = x / alpha and noise sigma / alpha, as they print it."""
    y, level = x0 + s / a * eps, s / a
    c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
    c_out = level * SIGMA_DATA / torch.sqrt(SIGMA_DATA**2 + level**2)
    return (x0 - c_skip * y) / c_out


# What each parameterisation asks its network for, given the x0 and eps that made x: the papers' targets.
TARGETS: dict[str, tuple[Precondition, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]] = {
    "score": (precondition.score, lambda x0, eps, a, s: -eps / s),  # of N(alpha x0, sigma^2) at x
    "eps": (precondition.eps, lambda x0, eps, a, s: eps),
    "x0": (precondition.x0, lambda x0, eps, a, s: x0),
    "v": (precondition.v, lambda x0, eps, a, s: (a * eps - s * x0) / torch.sqrt(a**2 + s**2)),
    "flow": (precondition.flow, lambda x0, eps, a, s: eps - x0),
    "edm": (precondition.edm(SIGMA_DATA), edm_target),
}
targets = pytest.mark.parametrize(("precondition", "target"), TARGETS.values(), ids=TARGETS.keys())
preconditions = pytest.mark.parametrize("precondition", [p for p, _ in TARGETS.values()], ids=TARGETS.keys())
scales = pytest.mark.parametrize(("alpha", "sigma"), SCALES)


class Says(nn.Module):
    """A network with one answer, which remembers what it was called with."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        self.seen = {"x": x, "c_noise": c_noise, **cond}
        return self.answer


def draws(shape: tuple[int, ...], n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, *shape, generator=generator, dtype=torch.float64).unbind(0)
    return x0, eps


def numbers(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


# Parameterisations


@scales
@targets
def test_a_network_that_knows_its_target_gives_x0_and_eps(
    precondition: Precondition, target: Callable[..., Tensor], alpha: float, sigma: float
) -> None:
    x0, eps = draws((3, 2))
    a, s = numbers(alpha, sigma)
    x = a * x0 + s * eps
    denoiser = Denoiser(Says(target(x0, eps, a, s)), precondition)
    # D undoes x = alpha x0 + sigma eps: float64's 1e-16 of the larger term, by alpha for x0 and by sigma for eps.
    assert_close(denoiser(x, a, s), x0, rtol=0, atol=1e-14 * max(1.0, sigma) / min(1.0, alpha))
    assert_close(denoiser.noise(x, a, s), eps, rtol=0, atol=1e-14 * max(1.0, alpha) / min(1.0, sigma))


@targets
def test_scales_may_differ_within_a_batch(precondition: Precondition, target: Callable[..., Tensor]) -> None:
    x0, eps = draws((3, 2), n=len(SCALES))
    alphas, sigmas = torch.tensor(SCALES, dtype=torch.float64).T
    a, s = alphas[:, None, None], sigmas[:, None, None]
    x = a * x0 + s * eps
    denoiser = Denoiser(Says(target(x0, eps, a, s)), precondition)
    assert_close(denoiser(x, alphas, sigmas), x0, rtol=0, atol=1e-11)
    assert_close(denoiser.noise(x, alphas, sigmas), eps, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="expected a scale of shape"):
        denoiser(x, alphas[:2], sigmas[:2])


@preconditions
def test_every_parameterisation_gives_the_network_minus_an_eighth_of_the_log_snr(precondition: Precondition) -> None:
    alpha, sigma = 0.9, 0.2
    c_noise = precondition(alpha, sigma)[3]  # of plain numbers
    assert float(c_noise) == pytest.approx(-(2 * math.log(alpha / sigma)) / 8, rel=1e-12, abs=1e-15)


@preconditions
def test_the_network_sees_c_in_x_and_c_noise_of_each_sample(precondition: Precondition) -> None:
    x0, _ = draws((2, 3))
    a, s = numbers(0.9, 0.2)
    net = Says(x0.float())
    Denoiser(net, precondition)(x0.float(), a, s, label=torch.arange(3), text="as is")
    c_in, _, _, c_noise = precondition(a, s)
    assert_close(net.seen["x"], c_in.float() * x0.float())
    assert_close(net.seen["c_noise"], c_noise.float().expand(3))
    assert net.seen["x"].dtype == net.seen["c_noise"].dtype == torch.float32
    assert net.seen["label"].tolist() == [0, 1, 2]
    assert net.seen["text"] == "as is"


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
def test_the_input_of_the_network_has_unit_variance_when_the_data_has(name: str) -> None:
    alpha, sigma = 0.9, 0.2
    c_in = (
        precondition.edm(1.0)(*numbers(alpha, sigma))[0]
        if name == "edm"
        else TARGETS[name][0](*numbers(alpha, sigma))[0]
    )
    assert float(c_in) * math.hypot(alpha, sigma) == pytest.approx(1.0, rel=1e-12)


@scales
def test_edm_is_the_papers_table_at_alpha_one(alpha: float, sigma: float) -> None:
    """Karras et al. 2022, Table 1, last column, at their noise level sigma / alpha and their input x / alpha."""
    level, data = sigma / alpha, SIGMA_DATA
    c_in, c_skip, c_out, c_noise = (float(c) for c in precondition.edm(data)(*numbers(alpha, sigma)))
    assert c_in * alpha == pytest.approx(1 / math.sqrt(data**2 + level**2), rel=1e-12)
    assert c_skip * alpha == pytest.approx(data**2 / (data**2 + level**2), rel=1e-12)
    assert c_out == pytest.approx(level * data / math.sqrt(data**2 + level**2), rel=1e-12)
    assert c_noise == pytest.approx(math.log(level) / 4, rel=1e-12)


def test_edm_assumes_half_a_unit_of_data() -> None:
    assert_close(precondition.edm()(*numbers(0.8, 0.6)), precondition.edm(0.5)(*numbers(0.8, 0.6)))


@preconditions
@pytest.mark.parametrize(("alpha", "sigma"), [(0.3, 0.7)])
def test_noise_is_x_minus_alpha_d_over_sigma(precondition: Precondition, alpha: float, sigma: float) -> None:
    x, answer = draws((3, 8, 8))
    a, s = numbers(alpha, sigma)
    denoiser = Denoiser(Says(answer), precondition)
    by_hand = (x - alpha * denoiser(x, a, s)) / sigma
    # The subtraction by hand loses 1e-16 / sigma of x and of alpha D.
    atol = 1e-14 * (1 + float((alpha * denoiser(x, a, s)).abs().max())) / min(sigma, 1.0)
    assert_close(denoiser.noise(x, a, s), by_hand, rtol=1e-12, atol=atol)
    assert_close(predict_noise(denoiser, x, a, s), denoiser.noise(x, a, s), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["score", "eps", "v", "flow", "edm"])
def test_float32_noise_keeps_its_digits_at_little_noise(name: str) -> None:
    """At sigma = 1e-5 the plain (x - alpha D) / sigma would be off by 6e-8 / 1e-5, a percent of eps."""
    alpha = 1 - 1e-5
    x0, eps = draws((3, 8, 8))
    a, s = numbers(alpha, 1e-5)
    prediction, target = TARGETS[name]
    answer = target(x0, eps, a, s)
    x = (a * x0 + s * eps).float()
    single = Denoiser(Says(answer.float()), prediction).noise(x, a, s)
    double = Denoiser(Says(answer.float().double()), prediction).noise(x.double(), a, s)
    assert single.dtype == torch.float32
    # x and F count, each times a coefficient of order one, both rounded to 6e-8: sums of 4.
    assert_close(single.double(), double, rtol=1e-6, atol=1e-6)


def test_float32_noise_keeps_its_digits_when_the_scales_are_float32_too() -> None:
    x0, eps = draws((3, 8, 8))
    a, s = torch.tensor(1.0), torch.tensor(1e-5)
    for name in ("score", "eps", "v", "flow", "edm"):
        prediction, target = TARGETS[name]
        x, answer = (x0 + s * eps).float(), target(x0, eps, a, s).float()
        double = Denoiser(Says(answer.double()), prediction).noise(x.double(), a.double(), s.double())
        assert_close(Denoiser(Says(answer), prediction).noise(x, a, s).double(), double, rtol=1e-6, atol=1e-6)


def test_own_preconditions_and_other_precisions_are_welcome() -> None:
    def halved(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return alpha / 2, sigma, 2 * sigma, alpha

    x, a, s = torch.ones(2, 3), torch.tensor(0.8), torch.tensor(0.6)
    net = Says(torch.full((2, 3), 0.5, dtype=torch.bfloat16))
    assert_close(Denoiser(net, halved)(x, a, s), torch.full((2, 3), 0.6 + 1.2 * 0.5))
    assert_close(net.seen["x"], torch.full((2, 3), 0.4))
    single = Denoiser(Says(torch.ones(2, 3)), halved)
    assert single(x.bfloat16(), a, s).dtype == single.noise(x.bfloat16(), a, s).dtype == torch.bfloat16  # as x


@preconditions
def test_gradients_reach_the_network(precondition: Precondition) -> None:
    net = MLP((2,), width=16, blocks=1)
    denoiser = Denoiser(net, precondition)
    denoiser(torch.ones(3, 2), torch.tensor(0.8), torch.tensor(0.6)).sum().backward()
    assert net.head.bias.grad is not None
    assert float(net.head.bias.grad.abs().sum()) > 0


def test_scales_may_be_plain_numbers() -> None:
    x, answer = draws((3, 2))
    denoiser = Denoiser(Says(answer), precondition.v)
    for call in (denoiser, denoiser.noise, lambda *args: predict_noise(denoiser.forward, *args)):
        assert torch.equal(call(x, 0.8, 0.6), call(x, *numbers(0.8, 0.6)))


# Shapes


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "one number for each sample": lambda x: x.flatten(1).mean(1),
    "one sample": lambda x: x[:1],
    "one number": lambda x: x.mean(),
    "twice the channels": lambda x: torch.cat([x, x], 1),
    "a channel's mean": lambda x: x.mean(1, keepdim=True).expand(-1, 2, *x.shape[2:]),
}
WEIGHT = 0.5


class Scaled(nn.Module):
    """A network that says half of x, in a shape of its own."""

    def __init__(self, shape: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.weight, self.shape = nn.Parameter(torch.tensor(WEIGHT, dtype=torch.float64)), shape

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.weight * self.shape(x)


def uses(denoiser: Denoiser, shape: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """Every use of a denoiser's answer: a loss, a training step, bounds, a density and a sample, one number each."""
    sde, (x0, eps) = VPSDE(t_min=0.01), draws(shape, n=4)
    t = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    settings: dict[str, Any] = {"noise": PerSampleNoise(0, range(4)), "decoder": GaussianDecoder()}
    return {
        "dsm_loss": lambda: dsm_loss(denoiser, sde, x0, t, eps).mean(),
        "elbo": lambda: elbo(denoiser, sde, x0, **settings).log_prob.mean(),
        "vlb": lambda: vlb(denoiser, sde, x0, steps=20, **settings).log_prob.mean(),
        "dsm_bound": lambda: dsm_bound(denoiser, sde, x0, noise=settings["noise"]).log_prob.mean(),
        "log_likelihood": lambda: log_likelihood(denoiser, sde, x0, noise=settings["noise"]).log_prob.mean(),
        "sample": lambda: DDIM()(denoiser, sde, x0, grids.log_snr(sde, 3)).mean(),
        "train": lambda: next(train(denoiser, sde, [x0], images=4)).loss,
    }


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("shape", [(1,), (4,), (1, 2, 2), (4, 2, 2)], ids=str)
def test_a_network_that_answers_in_another_shape_is_refused_by_every_use(
    shape: tuple[int, ...], wrong: Callable[[Tensor], Tensor]
) -> None:
    # Broadcasting makes numbers of these: (4,) is added to (4, 1) as (4, 4), and to (4, 4) along the wrong axis.
    for use in uses(Denoiser(Scaled(wrong), precondition.eps).double(), shape).values():
        with pytest.raises(ValueError, match=r"expected the network to answer in the shape of x, \(4, .*, got .*:"):
            use()


def test_the_same_uses_of_a_network_of_the_right_shape_have_the_right_values() -> None:
    # eps_hat = x / 2, whose expected error in closed form is |(alpha x0 + sigma eps) / 2 - eps|^2: independent sums.
    (x0, eps), sde = draws((1,), n=4), VPSDE(t_min=0.01)
    values = {
        name: float(use().detach()) for name, use in uses(Denoiser(Scaled(), precondition.eps).double(), (1,)).items()
    }
    alpha, sigma = sde.scales(torch.linspace(0.1, 0.9, 4, dtype=torch.float64))
    error = WEIGHT * (alpha * x0[:, 0] + sigma * eps[:, 0]) - eps[:, 0]
    assert values["dsm_loss"] == pytest.approx(float(error.square().mean()), rel=1e-12)
    # dx/dt = f x + g^2 eps_hat / (2 sigma) is linear in x, so log p is a normal's, by its factor exp int (f + ...) dt.
    ts = torch.linspace(sde.t_min, sde.t_max, 20_001, dtype=torch.float64)
    rate = sde.drift(ts) + sde.diffusion(ts).square() * WEIGHT / (2 * sde.scales(ts)[1])
    growth = float(torch.trapezoid(rate, ts))
    log_p = -(x0 * math.exp(growth)).square().mean() / 2 - math.log(2 * math.pi) / 2 + growth
    assert values["log_likelihood"] == pytest.approx(float(log_p), abs=1e-3)
    assert all(math.isfinite(value) for value in values.values())  # the bounds' own values are test_bounds.py's


def first(x: Tensor) -> Tensor:
    return x[:1]


@pytest.mark.parametrize(
    ("call", "who"),
    [
        (lambda d, s, x, t: dsm_loss(d, s, x, t, x[:, 0]), "the noise to answer in the shape of x"),
        (lambda d, s, x, t: elbo(d, s, x, decoder=GaussianDecoder(), noise=first), "the noise to answer"),
        (lambda d, s, x, t: DDIM(eta=1.0)(d, s, x, grids.log_snr(s, 3), noise=first), "the noise to answer"),
        (lambda d, s, x, t: log_likelihood(d, s, x, noise=first), "the noise to answer"),
        (lambda d, s, x, t: s.prior((4, 1), noise=first), "the noise to answer"),
        (
            lambda d, s, x, t: dsm_loss(d, s, x, t, x, weight=lambda s, t: t[:, None]),
            r"the weight to answer with one number for each sample, \(4,\), got \(4, 4\)",
        ),
        (
            lambda d, s, x, t: next(train(d, s, [x], images=4, weight=lambda s, t: t[:, None])),
            "the weight to answer with one number for each sample",
        ),
        (lambda d, s, x, t: dsm_loss(d, s, x, t[:, None], x), "the weight to answer with one number for each sample"),
        (lambda d, s, x, t: elbo(d, s, x, decoder=GaussianDecoder(), uniform=first), "the uniform numbers to answer"),
        (lambda d, s, x, t: dequantise(x.long().abs(), 9, uniform=first), "the uniform numbers to answer"),
        (
            lambda d, s, x, t: log_likelihood(d, s, x, prior_log_prob=lambda z: z),
            r"the prior to answer with one number for each sample, \(4,\), got \(4, 1\)",
        ),
        (
            lambda d, s, x, t: Variational(lambda centre, u: (u, u))(x.long().abs(), 9, s, torch.rand_like),
            "the flow's log_q to answer with one number",
        ),
        (
            lambda d, s, x, t: Variational(lambda centre, u: (u[:1], t))(x.long().abs(), 9, s, torch.rand_like),
            "the uniform numbers to answer in the shape of x",
        ),
    ],
)
def test_other_parts_of_a_users_own_are_refused_in_another_shape(call: Callable[..., Any], who: str) -> None:
    x, t = draws((1,), n=4)[0], torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"expected {who}"):
        call(Denoiser(Scaled(), precondition.eps).double(), VPSDE(t_min=0.01), x, t)
