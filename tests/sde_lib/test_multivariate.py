"""A path with a noise level for each dimension, and the codes that it depends on."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models.analytic import Gaussian
from scorefield.sde_lib import FrozenVP, MultivariateVP, PerDimensionVP, expand
from scorefield.sde_lib.k_hot import k_hot
from scorefield.solvers import (
    RK4,
    Adaptive,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    PerSampleNoise,
    Solver,
    grids,
    sample,
)

COEFFICIENTS = (0.7, -1.1, 0.9)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path(batch: int = 4, shape: tuple[int, ...] = (3,), high: float = 13.3) -> PerDimensionVP:
    a, b, c = (random(batch, *shape, seed=i) for i in range(3))
    return PerDimensionVP(a, b, c.abs() + 0.3, high=high)


def equal_path(batch: int, shape: tuple[int, ...]) -> PerDimensionVP:
    a, b, c = (torch.full((batch, *shape), value, dtype=torch.float64) for value in COEFFICIENTS)
    return PerDimensionVP(a, b, c)


def gaussian() -> Gaussian:
    return Gaussian(torch.tensor([0.1, -0.3, 0.5]).double(), torch.tensor([0.5, 1.0, 0.2]).double())


class Trained(MultivariateVP):
    """With polynomials that differ, as after training."""

    def __init__(self, shape: tuple[int, ...], **settings: int) -> None:
        torch.manual_seed(1)
        super().__init__(shape, **settings)
        nn.init.normal_(self.polynomials[-1].weight)
        self.double()


# Codes


def test_a_code_of_k_bits_has_the_exact_distribution_divergence_and_gradient() -> None:
    logits, k, draws = 1.5 * random(1, 6), 3, 20_000
    codes = torch.tensor([[float(i in bits) for i in range(6)] for bits in itertools.combinations(range(6), k)])
    codes = codes.double()
    exact = (codes @ logits[0]).softmax(0)
    uniform = torch.rand(draws, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = logits.clone().requires_grad_()

    drawn, kl = k_hot(wanted.expand(draws, 6), k, uniform)

    assert_close(kl[0], (exact * (exact * len(codes)).log()).sum(), rtol=0, atol=1e-12)
    counts = (drawn.detach() @ codes.T == k).double().sum(0)
    assert counts.sum() == draws  # each is a code
    chi = ((counts - draws * exact).square() / (draws * exact)).sum()
    assert chi < 43.8  # of 19 degrees of freedom: a false alarm in 1,000
    # The gradient of a draw is that of the mean:  cov(c) v.
    v = random(6, seed=1)
    (gradient,) = torch.autograd.grad(drawn[0] @ v, wanted)
    mean = exact @ codes
    covariance = (codes - mean).T @ (exact[:, None] * (codes - mean))
    assert_close(gradient[0], covariance @ v, rtol=0, atol=1e-12)


def test_codes_of_all_bits_and_with_extreme_logits_are_drawn() -> None:
    logits = torch.tensor([[50.0, -900.0, 0.0], [0.0, 0.0, 800.0]])
    drawn, kl = k_hot(logits, 1, torch.full((2, 3), 0.9))
    assert drawn.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert_close(kl, torch.full((2,), math.log(3)).double())
    drawn, kl = k_hot(random(500, 3), 3, torch.full((500, 3), 1 - 2**-53, dtype=torch.float64))
    assert bool((drawn == 1).all())
    assert_close(kl, torch.zeros(500).double())


# The path


@pytest.mark.parametrize("t", [0.0, 0.2, 1.0])
def test_equal_polynomials_are_the_variance_preserving_path_to_the_bit(t: float) -> None:
    ours, one = equal_path(2, (3, 4)), FrozenVP("polynomial", weights=(COEFFICIENTS,))
    for ours_, one_ in zip((ours.log_snr(t), *ours.scales(t)), (one.log_snr(t), *one.scales(t)), strict=True):
        assert ours_.shape == (2, 3, 4)
        assert bool((ours_ == one_).all())
    assert_close(ours.drift(t), one.drift(t).expand(2, 3, 4), rtol=1e-12, atol=1e-14)
    assert_close(ours.diffusion(t), one.diffusion(t).expand(2, 3, 4), rtol=1e-12, atol=1e-14)


def test_ends_are_exact_and_the_log_snr_falls_in_every_dimension() -> None:
    coefficients = (10 * random(1, 2000, seed=i).float() for i in range(2))
    flattest = torch.full((1, 2000), 1e-3)
    ours = PerDimensionVP(*coefficients, flattest)
    for t, end in ((0.0, 13.3), (1.0, -5.0)):
        assert_close(ours.log_snr(torch.tensor(t)), torch.full((1, 2000), end), rtol=0, atol=1e-6)
    falls = torch.stack([ours.log_snr(t) for t in torch.linspace(0, 1, 65, dtype=torch.float64)]).diff(dim=0)
    assert bool((falls < 0).all())


def test_slope_drift_and_diffusion_are_the_derivatives_for_one_time_and_for_one_a_sample() -> None:
    ours, t, h = path(), torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64), 1e-5
    assert_close((ours.log_snr(t + h) - ours.log_snr(t - h)) / (2 * h), ours.slope(t), rtol=1e-7, atol=1e-7)
    assert_close((ours.log_alpha(t + h) - ours.log_alpha(t - h)) / (2 * h), ours.drift(t), rtol=1e-7, atol=1e-7)
    assert_close(ours.diffusion(t).square(), -ours.scales(t)[1].square() * ours.slope(t))
    assert_close(ours.slope(t)[2], ours.slope(0.6)[2])


def test_codes_choose_paths_that_start_as_the_straight_line() -> None:
    line, trained = MultivariateVP((2, 3), size=5, active=2, width=4).double(), Trained((2, 3), size=5, active=2)
    code = line.draw(4, PerSampleNoise(0, range(4)).uniform)
    assert code.sum(1).tolist() == [2.0] * 4
    assert_close(line.given(code).log_snr(0.3), line.log_snr(0.3).expand(4, 2, 3))
    assert float(line.time(line.log_snr(0.3))) == pytest.approx(0.3)
    levels = trained.given(code).log_snr(0.3)
    assert len({tuple(row.flatten().tolist()) for row in levels.detach()}) == len({tuple(c) for c in code.tolist()})
    assert_close(trained.given(code[:1]).log_snr(0.3), levels[:1], rtol=1e-12, atol=1e-12)


def test_the_encoder_gets_a_gradient_through_the_code_and_its_divergence() -> None:
    trained = Trained((3,), size=5, active=2, width=4)
    code, kl = trained.infer(random(4, 3), torch.rand(4, 5))
    for loss in (trained.given(code).log_snr(0.5).sum(), kl.sum()):
        (gradient,) = torch.autograd.grad(loss, trained.encoder[1].weight, retain_graph=True)
        assert float(gradient.abs().sum()) > 0


def test_a_scale_of_the_shape_of_x_multiplies_it() -> None:
    x, scale = random(2, 3), random(2, 3, seed=1)
    assert_close(expand(scale, x), scale)
    assert expand(scale, x.float()).dtype == torch.float32


# Solvers


@pytest.mark.parametrize("solver", [Euler(), Midpoint(), Heun(), RK4(), EulerMaruyama()], ids=str)
def test_solvers_take_equal_levels_as_they_take_one(solver: Solver) -> None:
    ours, one, model = equal_path(4, (3,)), FrozenVP("polynomial", weights=(COEFFICIENTS,)), gaussian()
    x, ts = random(4, 3), grids.uniform(one, 12)
    results = [solver(model, sde, x, ts, noise=PerSampleNoise(0, range(4))) for sde in (ours, one)]
    assert_close(*results, rtol=1e-10, atol=1e-10)


def test_the_flow_encodes_and_decodes_on_its_way_in_every_dimension() -> None:
    ours, model, x = path(high=6.0), gaussian(), random(4, 3)
    ts = grids.uniform(ours, 40)  # the error of order 4 is below 3e-4, and a 16th of that with twice the steps
    latent = RK4()(model, ours, x, ts.flip(0))
    # The flow of a Gaussian keeps each standardised value.
    alpha, sigma = (scale for scale in ours.scales(0.0))
    standard = (x - alpha * model.means[0]) / torch.hypot(alpha * model.stds[0], sigma)
    alpha, sigma = (scale for scale in ours.scales(1.0))
    assert_close(
        latent, alpha * model.means[0] + torch.hypot(alpha * model.stds[0], sigma) * standard, atol=5e-4, rtol=0
    )
    assert_close(RK4()(model, ours, latent, ts), x, atol=5e-4, rtol=0)


def test_samples_get_codes_of_their_own_and_do_not_depend_on_the_batch() -> None:
    trained, seen = Trained((3,), size=5, active=2, width=4), []

    def model(x: Tensor, alpha: Tensor, sigma: Tensor, code: Tensor) -> Tensor:
        seen.append(code)
        return gaussian()(x, alpha, sigma)

    settings = {"solver": Heun(), "grid": grids.uniform, "steps": 20, "dtype": torch.float64}
    x = sample(model, trained, (400, 3), **settings)
    assert len({tuple(code) for code in seen[0].tolist()}) > 5
    assert_close(x[7:9], sample(model, trained, (2, 3), first=7, **settings), rtol=1e-9, atol=1e-9)
    # Of 400 values the deviation is within 15% of the data's at 4 of its errors.
    assert_close(x.std(0), gaussian().stds[0], rtol=0.15, atol=0)


@pytest.mark.parametrize("solver", [DPMSolver(), Adaptive(), Heun("log_snr")], ids=lambda solver: type(solver).__name__)
def test_what_needs_one_level_refuses_by_one_sentence(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"one noise level for all dimensions for .*, got PerDimensionVP: use Euler"):
        solver(gaussian(), path(), random(4, 3), grids.uniform(path(), 5))


def test_other_misuse_is_one_sentence() -> None:
    family, ts = MultivariateVP((3,), size=5, active=2), grids.uniform(path(), 5)
    for call, message in (
        (lambda: Euler()(gaussian(), family, random(4, 3), ts), "got MultivariateVP.*pass sde.given"),
        (lambda: grids.log_snr(path(2), 5), "a grid of noise levels, got PerDimensionVP: use a grid in time"),
        (lambda: path().time(0.0), "use a grid in time"),
        (lambda: path().log_snr(torch.rand(3)), r"expected a time of shape \(\) or \(4,\)"),
        (lambda: family.given(torch.ones(3, 4)), r"expected a code \(B, 5\), got \(3, 4\)"),
        (lambda: MultivariateVP((3,), size=5, active=6), "active <= size"),
        (lambda: MultivariateVP((3,), low=5.0, high=-5.0), "expected a log-SNR that falls"),
        (lambda: family.infer(torch.ones(3, 3), torch.rand(3, 4)), r"the uniform numbers .*\(3, 5\), got \(3, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
