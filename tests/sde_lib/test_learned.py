"""Learned paths: exact ends and a strict fall at any weights, and the same answers from the plain path."""

import math
from typing import Any

import pytest
import torch
from oracles import SOLVERS, batch, gaussian
from torch import Tensor
from torch.testing import assert_close

from scorefield.configs.build import SDES, build, sde_spec
from scorefield.likelihood import Exact, GaussianDecoder, elbo, log_likelihood
from scorefield.sde_lib import SDE, FrozenVP, LearnedVP
from scorefield.sde_lib.learned import INTERIORS
from scorefield.solvers import AdamsMoulton, PerSampleNoise, grids

every_interior = pytest.mark.parametrize("interior", INTERIORS)
T = torch.linspace(0, 1, 10_001, dtype=torch.float64)


def scrambled(interior: str, seed: int = 0, scale: float = 3.0) -> LearnedVP:
    """A path with random weights, its ends among them."""
    path, generator = LearnedVP(interior), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in path.weights:
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        path.low.add_(torch.randn((), generator=generator))
        path.span.add_(torch.randn((), generator=generator))
    return path


@every_interior
def test_a_new_path_has_its_ends_and_is_a_straight_line_or_near_it(interior: str) -> None:
    path = LearnedVP(interior, low=-5.0, high=13.3)
    log_snr = path.log_snr(T).detach()
    # The parameters are float32, whose spacing is 1e-6 at 13.3 and 2e-6 at the span of 18.3.
    assert_close(log_snr[[0, -1]], torch.tensor([13.3, -5.0], dtype=torch.float64), rtol=0, atol=2e-6)
    # The sigmoids' tails beyond the ends bend the monotone network's line a little.
    assert_close(log_snr, 13.3 - 18.3 * T, rtol=0, atol=0.5 if interior == "monotone" else 2e-6)


@every_interior
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_at_any_weights_the_ends_are_exact_and_the_path_falls(interior: str, scale: float) -> None:
    for seed in range(8):
        path = scrambled(interior, seed, scale)
        log_snr = path.log_snr(T).detach()
        ends = torch.stack([path.high, path.low]).detach()
        assert_close(log_snr[[0, -1]], ends.double(), rtol=0, atol=2e-6)
        # A thousandth of each interior is a line, which falls by 1e-7 of the range in each of these steps.
        assert bool((log_snr.diff() <= -0.99e-7 * float(ends[0] - ends[1])).all())


def test_the_ends_stay_in_order_wherever_their_parameters_go() -> None:
    path = LearnedVP("linear")
    with torch.no_grad():
        for span in (-20.0, -1.0, 0.0, 50.0):
            path.span.fill_(span)
            assert float(path.high - path.low) >= 0
            assert float(path.log_snr(0.0)) > float(path.log_snr(1.0))


def test_polynomial_and_bins_are_their_formulas() -> None:
    path = scrambled("polynomial")
    a, b, c = path.weights[0].detach().double().tolist()
    square = [c * c, 2 * b * c, b * b + 2 * a * c, 2 * a * b, a * a]  # of (a s^2 + b s + c)^2
    integral = sum(k / (i + 1) * T ** (i + 1) for i, k in enumerate(square))
    assert_close(path.share(T).detach(), 1e-3 * T + 0.999 * integral / integral[-1], rtol=1e-9, atol=1e-12)

    path = scrambled("bins")
    risen = torch.cat([torch.zeros(1, dtype=torch.float64), path.weights[0].detach().double().softmax(0).cumsum(0)])
    edges = torch.linspace(0, 1, 65, dtype=torch.float64)
    assert_close(path.share(edges).detach(), 1e-3 * edges + 0.999 * risen, rtol=0, atol=1e-12)


@every_interior
def test_the_scales_are_those_of_the_log_snr_and_the_derivatives_those_of_differences(interior: str) -> None:
    path = scrambled(interior, scale=1.0)
    t = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.98 + 0.01
    alpha, sigma = (each.detach() for each in path.scales(t))
    log_snr = path.log_snr(t).detach()
    assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-12, atol=0)
    assert_close((alpha / sigma).log() * 2, log_snr, rtol=1e-10, atol=1e-10)
    h = 1e-6  # central differences of second order; float64 leaves them 1e-9
    slope = (path.log_snr(t + h) - path.log_snr(t - h)).detach() / (2 * h)
    assert_close(-((path.diffusion(t).detach() / sigma) ** 2), slope, rtol=1e-5, atol=1e-6)
    assert_close(path.drift(t).detach(), slope * sigma**2 / 2, rtol=1e-5, atol=1e-6)
    assert_close(
        -path.share_and_slope(t)[1].detach() * float((path.high - path.low).detach()), slope, rtol=1e-5, atol=1e-6
    )
    assert_close(path.time(log_snr), t, rtol=0, atol=1e-9)


@every_interior
def test_the_frozen_path_is_the_same_path(interior: str) -> None:
    path = scrambled(interior)
    frozen = path.frozen()
    assert_close(frozen.log_snr(T), path.log_snr(T).detach(), rtol=0, atol=1e-12)
    assert frozen == build(SDES, sde_spec(path).to_dict()) == build(SDES, sde_spec(frozen).to_dict())
    assert hash(frozen) == hash(path.frozen())


@pytest.mark.parametrize("name", [name for name, case in SOLVERS.items() if case.kind])
def test_every_solver_takes_a_path_in_training(name: str) -> None:
    path = scrambled("linear")
    model, solver = gaussian((3,)), SOLVERS[name].solver
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def samples(sde: SDE) -> Tensor:
        x = z * float(sde.scales(1.0)[1].detach())
        return solver(model, sde, x, grids.log_snr(sde, 4), noise=PerSampleNoise(0, range(len(x)))).detach()

    # Equal but for the rounding of a closed form against a bisection, which steps amplify.
    assert_close(samples(path), samples(path.frozen()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("interior", ["linear", "monotone"])  # the time in closed form, and by bisection
def test_likelihoods_on_a_learned_path_are_the_exact_ones(interior: str) -> None:
    path, model = scrambled(interior, scale=0.5), gaussian((2,))
    x0 = batch(model, 8)
    with torch.no_grad():
        path.low.fill_(-16.0)
        path.span.fill_(28.0)
    ts = grids.log_snr(path, 30).flip(0)
    density = log_likelihood(model, path, x0, divergence=Exact(), solver=AdamsMoulton(), ts=ts)
    truth = model.log_prob(x0, *path.scales(0.0)).detach()
    # The prior's error is alpha = 3e-4 at the end times a mean of 0.8 and a z of 3.
    assert_close(density.log_prob.detach(), truth, rtol=0, atol=3e-3)
    noise = PerSampleNoise(0, range(len(x0)))
    settings: dict[str, Any] = {"decoder": GaussianDecoder(), "draws": 16, "noise": noise, "uniform": noise.uniform}
    bound = elbo(model, path, x0, **settings)
    assert bound.std_error is not None
    # Five standard errors of each of 4 x 8 values: a false alarm in 50,000 runs.
    assert bool(((bound.log_prob - truth).abs() < 5 * bound.std_error + 1e-2).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interior": "cubic"}, "expected an interior of linear, monotone, polynomial, bins, got 'cubic'"),
        ({"low": 5.0, "high": -5.0}, "expected a log-SNR that falls from high to low"),
        ({"low": 1.0, "high": 1.0}, "expected a log-SNR that falls"),
        ({"low": -math.inf}, "expected a log-SNR that falls"),
        ({"interior": "linear", "size": 8}, "expected a size of 2 or more, of a monotone interior or of bins"),
        ({"interior": "bins", "size": 1}, "expected a size of 2 or more"),
    ],
)
def test_what_is_no_path_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedVP(**settings)
    if "size" not in settings:
        with pytest.raises(ValueError, match=message):
            FrozenVP(**settings)


def test_frozen_weights_that_do_not_fit_are_refused() -> None:
    odd: list[tuple[str, tuple[tuple[float, ...], ...]]] = [
        ("monotone", ((1.0,),)),
        ("monotone", ((1.0,), (1.0,), (1.0, 2.0), (1.0, 2.0))),
        ("polynomial", ((1.0, 2.0),)),
        ("bins", ((1.0, math.nan),)),
        ("linear", ((1.0,),)),
    ]
    for interior, weights in odd:
        with pytest.raises(ValueError, match=r"expected \d lists of finite weights"):
            FrozenVP(interior, weights=weights)
