"""Particles around guided steps: against closed forms, and against the samplers that they contain."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense import Dense
from oracles import PATHS
from scipy.stats import kstest
from torch import Tensor
from torch.testing import assert_close

from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.models.guidance import ClassifierFree, PiGDM, PosteriorVariance
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import predict_x0
from scorefield.sde_lib.twist import Twist
from scorefield.solvers import PerSampleNoise, StochasticDPMSolver, Twisted, effective_sample_size, grids, sample

SDE = VPSDE(t_min=1e-3)
PRIOR = GaussianMixture(
    torch.tensor([[-1.5, 0.5], [1.0, -1.0], [1.0, 1.0]]).double(),
    torch.tensor([0.3, 0.2, 0.2]).double(),
    torch.tensor([0.5, 0.25, 0.25]).double(),
)
MATRIX = torch.tensor([[1.0, 0.2]]).double()
A = Dense(MATRIX, (2,))
Y, STD = torch.tensor([0.9]).double(), 0.3
PROBLEM = PiGDM(PRIOR, A, STD, data_std=1.2)
TS = grids.soft_clipped(SDE, 50)


def start(count: int, noise: PerSampleNoise) -> Tensor:
    return SDE.prior((count, 2), noise=noise, dtype=torch.float64)


def given(count: int) -> dict[str, Tensor]:
    return {"y": Y.expand(count, 1)}


class Unweighted:
    """A prior without any potential."""

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        return PRIOR(x, alpha, sigma)

    def twist(self, x: Tensor, alpha: Scale, sigma: Scale) -> Twist:
        x0 = PRIOR(x, alpha, sigma)
        return Twist(x0, ((1.0, x0),), x.new_zeros(len(x)))

    def finish(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
        return PRIOR(x, alpha, sigma), x.new_zeros(len(x))


def test_one_particle_is_the_guided_stochastic_solver_to_the_bit() -> None:
    noise = PerSampleNoise(1, range(4))
    once = Twisted(1)(PROBLEM, SDE, start(4, noise), TS, cond=given(4), noise=noise)
    noise = PerSampleNoise(1, range(4))
    x = StochasticDPMSolver()(PROBLEM, SDE, start(4, noise), TS, cond=given(4), noise=noise)
    assert torch.equal(once, predict_x0(PRIOR, x, *SDE.scales(float(TS[-1]))))


def test_without_a_potential_all_particles_are_plain_samples_of_one_weight() -> None:
    x, calls = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64), list[Tensor]()

    def noise(y: Tensor) -> Tensor:
        calls.append(torch.randn(y.shape, generator=torch.Generator().manual_seed(len(calls)), dtype=y.dtype))
        return calls[-1]

    particles = Twisted(4).sample_particles(Unweighted(), SDE, x, TS, noise=noise)
    steps = iter(each.flatten(0, 1) for each in calls[2:])  # after those for resampling, and the other particles
    size = float(SDE.scales(SDE.t_max)[1])
    first = torch.cat([x[:, None], size * calls[1]], 1).flatten(0, 1)
    plain = StochasticDPMSolver()(PRIOR, SDE, first, TS, noise=lambda _: next(steps))
    assert torch.equal(particles.x.flatten(0, 1), PRIOR(plain, *SDE.scales(float(TS[-1]))))
    assert_close(particles.ess, torch.full((3,), 4.0, dtype=torch.float64), rtol=1e-12, atol=0)
    assert not bool(particles.resampled.any())
    assert_close(particles.log_evidence, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def law_of_the_chain(prior: GaussianMixture, ts: Tensor, order: int) -> tuple[float, float]:
    """Mean and variance of the last D(x) for a Gaussian prior: it is a line in x_T and the noise of each step."""
    unit = torch.eye(len(ts), dtype=torch.float64)
    inputs = iter(torch.cat([torch.zeros(1, len(ts)).double(), unit]).T[:, :, None])
    first = float(SDE.scales(SDE.t_max)[1]) * next(inputs)
    x = StochasticDPMSolver(order)(prior, SDE, first, ts, noise=lambda _: next(inputs))
    x0 = prior(x, *SDE.scales(float(ts[-1])))[:, 0]
    return float(x0[0]), float((x0[1:] - x0[0]).square().sum())


@pytest.mark.parametrize("order", [1, 2])
def test_the_evidence_is_unbiased_for_the_discretised_model(order: int) -> None:
    """The chain of a Gaussian prior is a line, so that its evidence is known. False alarms: 0.3% (3 errors)."""
    prior, runs = Gaussian(torch.tensor([0.4]).double(), torch.tensor(0.8).double()), 400
    ts = grids.log_snr(SDE, 20)
    mean, variance = law_of_the_chain(prior, ts, order)
    exact = -((0.9 - mean) ** 2) / (variance + STD**2) / 2 - math.log(2 * math.pi * (variance + STD**2)) / 2

    problem = PiGDM(prior, Dense(torch.ones(1, 1).double(), (1,)), STD, data_std=2.0)  # wrong, so that weights work
    noise = PerSampleNoise(3, range(runs))
    x = SDE.prior((runs, 1), noise=noise, dtype=torch.float64)
    twisted = Twisted(6, threshold=0.9, order=order)
    particles = twisted.sample_particles(problem, SDE, x, ts, cond=given(runs), noise=noise)
    ratio = (particles.log_evidence - exact).exp()
    assert int(particles.resampled.sum()) > runs  # or the test would not see what resampling does
    error = float(ratio.std()) / math.sqrt(runs)
    assert abs(float(ratio.mean()) - 1) < 3 * error
    assert error < 0.05  # so that an error of 15% would be seen


def test_a_particle_goes_on_as_often_as_its_weight_on_average() -> None:
    """Over 1,000 even offsets of the comb, the mean counts are K w to 1 / 1,000 of a comb's tooth."""
    w, rows = torch.tensor([0.5, 0.05, 0.3, 0.15]).double(), 1000
    offsets = (torch.arange(rows).double() + 0.5) / rows

    class Numbered(Unweighted):
        """Particles that are their numbers times some scale, and stay in their order."""

        def twist(self, x: Tensor, alpha: Scale, sigma: Scale) -> Twist:
            x0 = torch.zeros_like(x)
            return Twist(x0, ((1.0, x0),), w.log().repeat(rows))

        def finish(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
            return x, x.new_zeros(len(x))

    def noise(x: Tensor) -> Tensor:
        if x.ndim == 2:  # for resampling
            return torch.special.ndtri(offsets)[:, None].expand_as(x)
        return torch.arange(1.0, 4).double().expand(rows, 3)[..., None] if x.shape == (rows, 3, 1) else 0 * x

    ts = torch.tensor([SDE.t_max, 0.5], dtype=torch.float64)
    particles = Twisted(4, threshold=1.0).sample_particles(
        Numbered(), SDE, torch.zeros(rows, 1).double(), ts, noise=noise
    )
    numbers = (3 * particles.x / particles.x.max()).round().long().flatten()
    assert_close(numbers.bincount().double() / rows, 4 * w, rtol=0, atol=2 / rows)


def test_its_law_is_the_posterior() -> None:
    """Shares of the modes, mean and deviation of 1,000 draws. False alarms: each below 0.1% (3.3 errors)."""
    posterior, log_evidence = PRIOR.posterior(MATRIX, Y, STD)
    count = 1000
    noise = PerSampleNoise(5, range(count))
    twisted = Twisted(16)
    particles = twisted.sample_particles(PROBLEM, SDE, start(count, noise), TS, cond=given(count), noise=noise)
    x = particles.draw(noise.uniform(torch.empty(count, dtype=torch.float64)))
    truth = posterior.sample(100_000, torch.Generator().manual_seed(0))
    upper, share = float((x[:, 1] > 0).double().mean()), float((truth[:, 1] > 0).double().mean())
    # 50 steps and 16 particles leave a bias of less than 0.02 (with 400 and 100 it is below the error).
    assert abs(upper - share) < 3.3 * math.sqrt(share * (1 - share) / count) + 0.02
    deviation = truth.std(0)
    assert bool(((x.mean(0) - truth.mean(0)).abs() / deviation < 3.3 / math.sqrt(count) + 0.05).all())
    assert bool(((x.std(0) / deviation - 1).abs() < 3.3 / math.sqrt(2 * count) + 0.05).all())
    assert abs(float(particles.log_evidence.exp().mean().log() - log_evidence)) < 0.05


def test_a_sample_does_not_depend_on_its_batch() -> None:
    def run(rows: range) -> tuple[Tensor, Tensor]:
        noise = PerSampleNoise(7, rows)
        particles = Twisted(5).sample_particles(
            PROBLEM, SDE, start(len(rows), noise), TS, cond=given(len(rows)), noise=noise
        )
        return particles.x, particles.log_evidence

    together, alone = run(range(6)), run(range(4, 5))
    assert torch.equal(together[0][4:5], alone[0])
    assert torch.equal(together[1][4:5], alone[1])


def test_guidance_at_three_is_the_tilted_law_with_particles_and_not_without() -> None:
    """In one dimension against quadrature, by Kolmogorov and Smirnov's test at 0.1% on 400 draws."""
    means, stds = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0.9, 0.6]).double()
    both = GaussianMixture(means, stds, torch.ones(2).double())
    one = GaussianMixture(means[1:], stds[1:], torch.ones(1).double())

    def denoiser(x: Tensor, alpha: Scale, sigma: Scale, label: Tensor | None = None) -> Tensor:
        return both(x, alpha, sigma) if label is None else one(x, alpha, sigma)

    w, count = 3.0, 400
    axis = torch.linspace(-6, 6, 6001).double()[:, None]
    density = ((1 - w) * both.log_prob(axis) + w * one.log_prob(axis)).softmax(0)
    cumulative = density.cumsum(0)

    def law(x: Any) -> Any:
        index = torch.searchsorted(axis[:, 0], torch.as_tensor(x)).clamp(max=len(axis) - 1)
        return cumulative[index].numpy()

    def p_value(particles: int) -> float:
        x = sample(
            ClassifierFree(denoiser, w), SDE, (count, 1), solver=Twisted(particles), steps=60, seed=2,
            cond={"label": torch.ones(count).long()}, dtype=torch.float64,
        )  # fmt: skip
        return float(kstest(x[:, 0].numpy(), law).pvalue)

    assert p_value(1) < 1e-3
    assert p_value(64) > 1e-3


def test_the_measured_variance_is_that_of_a_gaussian_on_every_path() -> None:
    """r^2 = s^2 rho^2 / (s^2 + rho^2), with 4,000 numbers a level: within 4 errors of sqrt(2 / 4000), 24 levels."""
    prior = Gaussian(torch.zeros(4).double(), torch.tensor(0.7).double())
    x0 = prior.sample(1000, torch.Generator().manual_seed(1))
    for name, sde in PATHS.items():
        measured = PosteriorVariance.measure(prior, sde, x0, noise=PerSampleNoise(0, range(1000)))
        for level in (-4.0, 0.3, 2.0):
            alpha, sigma = sde.scales(sde.time(torch.tensor(level).double()))
            rho2 = float(sigma / alpha) ** 2
            exact = 0.49 * rho2 / (0.49 + rho2)
            assert abs(float(measured(alpha, sigma)) / exact - 1) < 4 * math.sqrt(2 / 4000) + 0.01, name
    assert_close(measured.times(2.0)(alpha, sigma), 2 * measured(alpha, sigma))


def test_effective_sample_size() -> None:
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]).double()
    assert_close(effective_sample_size(weights.log()), torch.tensor([4.0, 1.0, 1.6]).double())


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def test_what_it_cannot_take_is_said() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert "wrap it, as PiGDM" in refusal(lambda: Twisted()(PRIOR, SDE, x, TS))
    assert "1 particle or more" in refusal(lambda: Twisted(0))
    assert "within [0, 1]" in refusal(lambda: Twisted(threshold=2.0))
