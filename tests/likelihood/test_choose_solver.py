"""Likelihoods to a tolerance in bits/dim: integration variables, steps and trial samples, against closed forms."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from oracles import PATHS, batch, gaussian, mixture
from scipy.integrate import quad
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import Divergence, Exact, Hutchinson, HutchPlusPlus, Plan, choose_solver, log_likelihood
from scorefield.likelihood.divergence import orthonormal
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.models import MLP, Denoiser, precondition
from scorefield.models.analytic import Empirical, Gaussian, GaussianMixture
from scorefield.models.counting import CountCalls
from scorefield.sde_lib import SDE, VPSDE
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers import AdamsMoulton, Adaptive, PerSampleNoise, Scales, Schedule, grids
from scorefield.solvers.variables import SoftClippedLogSNR
from scorefield.training import TrainingState, train

CHECK = 3  # times at which the answers of a batch are compared with those of two samples
PAPER_PATHS = ["vp", "subvp", "ve", "edm", "cosine", "rectified"]
VARIABLES = [
    SoftClippedLogSNR(),
    SoftClippedLogSNR(time_weight=1.0),
    SoftClippedLogSNR(0.001, 2.5, spread=0.3, time_weight=20.0),
    SoftClippedLogSNR(0.05, 5.0, time_weight=0.02),
]


def seeded(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def at_the_end(model: Any, sde: SDE) -> Callable[[Tensor], Tensor]:
    return lambda z: model.log_prob(z, *sde.scales(sde.t_max))


def on_the_path(model: GaussianMixture, sde: SDE, n: int, seed: int) -> Tensor:
    """Samples of the path's marginal at t_min, which is where a likelihood starts."""
    alpha, sigma = sde.scales(sde.t_min)
    x0, noise = batch(model, n, seed), seeded(seed + 1000)
    return alpha * x0 + sigma * noise(x0)


def bits(nats: Tensor, x: Tensor) -> Tensor:
    return nats / (x[0].numel() * math.log(2))


def slope(steps: tuple[int, ...], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


# Integration variables with a time weight


@pytest.mark.parametrize(
    ("name", "variable"),
    [*(("vp", variable) for variable in VARIABLES), ("ve", VARIABLES[2]), ("rectified", VARIABLES[2])],
    ids=repr,
)
def test_the_derivative_is_that_of_its_values_and_its_time_their_inverse(
    name: str, variable: SoftClippedLogSNR
) -> None:
    sde = PATHS[name]
    share = torch.tensor([1e-3, 0.02, 0.3, 0.5, 0.77, 0.98], dtype=torch.float64)
    t = sde.t_min + share * (sde.t_max - sde.t_min)
    h = 1e-5 * (t - sde.t_min).clamp(max=1.0)  # the readings bend most at t_min
    difference = (variable.value(sde, t + h) - variable.value(sde, t - h)) / (2 * h)
    assert_close(variable.derivative(Scales.at(sde, t)), difference, rtol=1e-4, atol=1e-5)
    assert_close(variable.time(sde, variable.value(sde, t)), t, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "variable"),
    [*(("vp", variable) for variable in VARIABLES), ("ve", VARIABLES[2]), ("rectified", VARIABLES[2])],
    ids=repr,
)
def test_a_grid_in_a_variable_falls_from_end_to_end_in_equal_steps(name: str, variable: SoftClippedLogSNR) -> None:
    sde = PATHS[name]
    for steps in (1, 50):
        ts = grids.uniform_in(sde, steps, variable)
        assert len(ts) == steps + 1
        assert ts.dtype == torch.float64
        assert (float(ts[0]), float(ts[-1])) == (sde.t_max, sde.t_min)
        assert bool((ts.diff() < 0).all())
        strides = variable.value(sde, ts).diff()
        assert_close(strides, strides.mean().expand(steps), rtol=1e-5, atol=1e-8)
    assert_close(
        grids.soft_clipped(sde, 9, 0.02, 5.0, 0.3), grids.uniform_in(sde, 9, SoftClippedLogSNR(0.02, 5.0, None, 0.3))
    )


@pytest.mark.parametrize(
    ("settings", "message"), [({"time_weight": -1.0}, "a time_weight of 0 or more"), ({"low": 0.0}, "0 < low")]
)
def test_a_variable_that_cannot_be_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftClippedLogSNR(**settings)


# Adams-Bashforth-Moulton


@pytest.mark.parametrize(("name", "order"), [("vp", 3), ("rectified", 3), ("ve", 4), ("cosine", 4)])
def test_adams_moulton_of_order_three_and_four_has_its_order(name: str, order: int) -> None:
    """In the value, whose closed form is that a Gaussian's flow keeps (x - alpha m) / s_t, and in its density.

    At least: where errors change their sign between two grids, the slope is larger.
    """
    sde, model = PATHS[name], gaussian((2,))
    x, steps, variable = batch(model, 4), (50, 100, 200), SoftClippedLogSNR(0.1, 5.0, spread=0.5)
    ends = [sde.scales(t) for t in (sde.t_min, sde.t_max)]
    spreads = [torch.hypot(alpha * model.stds[0], sigma) for alpha, sigma in ends]
    latent = ends[1][0] * model.means[0] + (x - ends[0][0] * model.means[0]) / spreads[0] * spreads[1]
    errors = list[tuple[float, float]]()
    for n in steps:
        result = log_likelihood(
            model, sde, x, divergence=Exact(), solver=AdamsMoulton(order, variable),
            ts=grids.uniform_in(sde, n, variable).flip(0), prior_log_prob=at_the_end(model, sde),
        )  # fmt: skip
        assert result.latent is not None
        value = ((result.latent - latent) / spreads[1]).norm()
        errors.append((float(value), float((result.log_prob - model.log_prob(x, *ends[0])).norm())))
    for error in zip(*errors, strict=True):
        assert slope(steps, list(error)) > order - 0.25


@pytest.mark.parametrize(("name", "order"), [("vp", 1), ("ve", 2), ("rectified", 3), ("subvp", 4)])
def test_a_gaussian_of_the_variables_spread_takes_no_steps_at_all(name: str, order: int) -> None:
    """Its flow leaves x / size as it is, so the latents and the density are exact, whatever the grid."""
    sde, std = PATHS[name], torch.tensor(0.37, dtype=torch.float64)
    model = Gaussian(torch.zeros(3, 2, dtype=torch.float64), std)
    x = batch(model, 4)
    for steps in (1, 3):
        variable = SoftClippedLogSNR(0.02, 10.0, spread=0.37)
        result = log_likelihood(
            model, sde, x, divergence=Exact(), solver=AdamsMoulton(order, variable),
            ts=grids.uniform_in(sde, steps, variable).flip(0), prior_log_prob=at_the_end(model, sde),
        )  # fmt: skip
        sizes = [torch.hypot(alpha * std, sigma) for alpha, sigma in map(sde.scales, (sde.t_min, sde.t_max))]
        assert_close(result.latent, x / sizes[0] * sizes[1], rtol=1e-9, atol=1e-9)
        assert_close(result.log_prob, model.log_prob(x, *sde.scales(sde.t_min)), rtol=0, atol=1e-8)


@dataclass(frozen=True)
class Turning:
    """A denoiser whose velocity dy / dtheta is a polynomial in the variable's reading, the same for every x.

    D = s (y cos theta - v sin theta), with y = x / size and s the spread.
    """

    sde: SDE
    variable: SoftClippedLogSNR
    coefficients: tuple[float, ...]

    def velocity(self, theta: float) -> float:
        n = self.spread * math.tan(theta)
        t = self.sde.time(torch.tensor(-2 * math.log(n), dtype=torch.float64))
        return float(np.polyval(self.coefficients, float(self.variable.value(self.sde, t)) / 10))

    @property
    def spread(self) -> float:
        assert self.variable.spread is not None
        return self.variable.spread

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        theta = torch.atan2(sigma, alpha * self.spread)
        y = x / torch.hypot(sigma, alpha * self.spread)
        return self.spread * (y * theta.cos() - self.velocity(float(theta)) * theta.sin())


@pytest.mark.parametrize(
    ("name", "order", "degree"),
    [("vp", 1, 0), ("ve", 1, 1), ("rectified", 2, 1), ("vp", 3, 2), ("ve", 4, 2), ("rectified", 4, 2)],
)
def test_a_velocity_that_is_a_polynomial_of_the_variable_is_integrated_to_rounding(
    name: str, order: int, degree: int
) -> None:
    """Under the exact angle:  y' = y + int p(c) dtheta, by quadrature. The start of order 4 knows three evaluations."""
    sde, variable = PATHS[name], SoftClippedLogSNR(0.05, 5.0, spread=0.5)
    model = Turning(sde, variable, (0.7, -0.4, 0.5)[-degree - 1 :])
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    ends = [sde.scales(t) for t in (sde.t_min, sde.t_max)]
    angles = [math.atan2(float(sigma), 0.5 * float(alpha)) for alpha, sigma in ends]
    sizes = [math.hypot(float(sigma), 0.5 * float(alpha)) for alpha, sigma in ends]
    change = quad(model.velocity, *angles, epsabs=1e-10, epsrel=1e-10, limit=400)[0]
    for steps in (2, 5):
        result = log_likelihood(
            model, sde, x, divergence=Exact(), solver=AdamsMoulton(order, variable),
            ts=grids.uniform_in(sde, steps, variable).flip(0), prior_log_prob=lambda z: torch.zeros(1).double(),
        )  # fmt: skip
        assert_close(result.latent, (x / sizes[0] + change) * sizes[1], rtol=1e-6, atol=1e-6)
        # The volume grows as the size: nothing of y's own.
        assert_close(result.log_prob, torch.tensor([2 * math.log(sizes[1] / sizes[0])]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "order"), [("vp", 3), ("subvp", 4), ("rectified", 4)])
def test_data_that_is_one_point_sends_noise_where_it_belongs(name: str, order: int) -> None:
    """X - alpha m scales with sigma: y's noise is sin theta a, whose velocity turns as cos theta."""
    sde, point = PATHS[name], torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    (alpha, sigma), (last_alpha, last_sigma) = (sde.scales(t) for t in (sde.t_min, sde.t_max))
    noise = seeded(0)(torch.zeros(4, 2, dtype=torch.float64))
    x, latent = alpha * point + sigma * noise, last_alpha * point + last_sigma * noise
    # Sub-VP starts where noise is finest, 1e-6.
    variable = SoftClippedLogSNR(1e-4 if name == "subvp" else 1e-3, 5.0, spread=0.5)
    steps, errors = (50, 100), list[float]()
    for n in steps:
        result = log_likelihood(
            Empirical(point), sde, x, divergence=Exact(), solver=AdamsMoulton(order, variable),
            ts=grids.uniform_in(sde, n, variable).flip(0),
        ).latent  # fmt: skip
        assert result is not None
        errors.append(float((result - latent).norm() / latent.norm()))
    assert slope(steps, errors) > order - 0.5
    assert errors[1] < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_evaluations_are_as_many_as_foretold(order: int) -> None:
    sde, model, solver = PATHS["vp"], CountCalls(mixture((2,))), AdamsMoulton(order)
    for i, steps in enumerate((1, 2, 5, 20)):
        before = model.calls
        result = log_likelihood(
            model, sde, batch(mixture((2,)), 2), divergence=Exact(), solver=solver,
            ts=grids.soft_clipped(sde, steps).flip(0),
        )  # fmt: skip
        assert result.nfe == result.nfe_max == model.calls - before == solver.evaluations(steps), i
        assert solver.evaluations(steps) == steps + (3 if order > 2 else 1)


# The tolerance is kept


@dataclass(frozen=True)
class InThePlane(Divergence):
    """The exact trace for a mixture of round modes on one line through the origin, in any dimension, by three products.

    Its flow is a combination of x and m: it stays in their plane, where J = a + a matrix on that plane.
    """

    along: Tensor
    mode: str = "reverse"
    chunk: int = 3
    shared: ClassVar[bool] = False

    def directions(self, x: Tensor, noise: Any) -> Tensor:
        return orthonormal(torch.stack([self.along.expand_as(x), x, torch.randn_like(x)]))

    def estimates(self, products: Callable[[Tensor], Tensor], directions: Tensor) -> Tensor:
        first, second, across = (products(directions) * directions).flatten(2).sum(2)
        return (first + second + (directions[0, 0].numel() - 2) * across)[None]


def exact_trace(model: GaussianMixture) -> InThePlane:
    return InThePlane(model.means[0])


def image_like(shape: tuple[int, ...]) -> GaussianMixture:
    """Standard deviations from 1 down to 0.02 by a power law, as an image's frequencies have; two modes a unit from the
    origin each way in the coarsest, so that its Jacobian is diagonal and one Rademacher probe exact."""
    size = math.prod(shape)
    std = (1 + torch.arange(size, dtype=torch.float64)) ** (math.log(0.02) / math.log(size))
    mean = torch.zeros(size, dtype=torch.float64)
    mean[0], std[0] = 1.0, 0.4
    means = torch.stack([mean, -mean]).reshape(2, *shape)
    return GaussianMixture(means, std.reshape(1, *shape).expand(2, *shape), torch.tensor([0.3, 0.7]).double())


def narrow(dims: int) -> GaussianMixture:
    """Ten modes in the cube, of standard deviations 0.05 to 0.2."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand(10, dims, generator=generator, dtype=torch.float64) - 1
    stds = 0.05 + 0.15 * torch.rand(10, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, stds, torch.ones(10).double())


CASES: dict[str, tuple[GaussianMixture, Any, int]] = {
    "plane": (mixture((2,)), Exact(), 200),
    "ten narrow modes": (narrow(2), Exact(), 500),
    "64": (mixture((64,)), exact_trace(mixture((64,))), 200),
    "image-like": (image_like((3, 32, 32)), Hutchinson(), 8),
}


@pytest.mark.parametrize(
    ("case", "name", "tolerance"),
    [
        ("plane", "rectified", 1e-3),
        ("ten narrow modes", "ve", 1e-2),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                *(("plane", name, tolerance) for name in PAPER_PATHS for tolerance in (1e-2, 1e-3, 1e-4)),
                ("64", "edm", 1e-2),
                ("64", "subvp", 1e-3),
                ("64", "cosine", 1e-4),
                ("ten narrow modes", "vp", 1e-3),
                ("image-like", "vp", 1e-4),
            )
        ),
    ],
)
def test_every_value_is_within_its_tolerance_of_the_closed_form(case: str, name: str, tolerance: float) -> None:
    """No value is above it by a factor of two without being named, and at most one in 500 above it at all.

    The estimates are errors: the largest one is at least half of the largest error, and they are not all far too large.
    """
    (model, divergence, count), sde = CASES[case], PATHS[name]
    x = on_the_path(model, sde, count, 1)
    result = log_likelihood(
        model, sde, x, divergence=divergence, tolerance=tolerance, prior_log_prob=at_the_end(model, sde)
    )
    error = bits(result.log_prob - model.log_prob(x, *sde.scales(sde.t_min)), x).abs()
    assert result.solver_error is not None
    said = bits(result.solver_error, x)
    named = said > tolerance
    assert not bool(((error > 2 * tolerance) & ~named).any())
    assert int(((error > tolerance) & ~named).sum()) <= count / 500
    assert float(said.max()) > 0.5 * float(error.max())
    assert float(said.median()) < 100 * float(error.median())
    assert float(named.double().mean()) < 0.01


def estimated(model: Any, sde: SDE, x: Tensor, steps: int, *, integrals: bool = True) -> tuple[Tensor, Tensor]:
    """The error of each value and its estimate, in nats."""
    variable = SoftClippedLogSNR(0.05, 5.0, 0.5)
    flow = FlowWithDivergence(BoundDenoiser(model, None, len(x)), Exact(), False, torch.randn_like)
    schedule = Schedule(sde, grids.uniform_in(sde, steps, variable).flip(0), x)
    (latent, change), estimate = AdamsMoulton(3, variable).integrate_with_error(
        flow, flow.begin(x), schedule, integrals=integrals
    )
    error = at_the_end(model, sde)(latent) + change[:, 0] - model.log_prob(x, *sde.scales(sde.t_min))
    return error.abs(), estimate


def test_the_estimate_of_a_values_error_is_its_error() -> None:
    """A Gaussian far narrower than the variable's spread in 32 steps: nearly every estimate is 1 to 1.5 of its error.

    Without the slopes' part, or with its other sign, a twentieth of the estimates are half of their errors; without the
    integral they are none.
    """
    sde, model = PATHS["vp"], Gaussian(torch.zeros(1).double(), torch.tensor(0.1).double())
    error, estimate = estimated(model, sde, on_the_path(model, sde, 300, 1), 32)
    ratio = estimate / (1 + 10 / 32) / error
    assert 0.9 < float(ratio.quantile(0.05)) < float(ratio.quantile(0.95)) < 1.6


@pytest.mark.parametrize("integrals", [True, False])
def test_the_error_of_a_sample_on_the_ridge_between_modes_is_found(integrals: bool) -> None:
    """In 9 dimensions one sample in a hundred has an error a thousand times the median's: all of the worst are told.

    By the slopes alone too, where random probes leave nothing else. Some errors are then twice their estimates.
    """
    sde, model = PATHS["vp"], narrow(9)
    error, estimate = estimated(model, sde, on_the_path(model, sde, 500, 1), 32, integrals=integrals)
    assert float(error.max()) > 300 * float(error.median())
    large = error > 1e-2 * 9 * math.log(2)
    assert int(large.sum()) >= 5
    assert bool((estimate > error / 2)[large].all())
    assert float(estimate.median()) < 0.1 * float(estimate[large].min())


def test_an_estimate_costs_no_evaluation() -> None:
    sde, model = PATHS["vp"], CountCalls(mixture((2,)))
    x = on_the_path(mixture((2,)), sde, 3, 1)
    plan = choose_solver(mixture((2,)), sde, x, 1e-2, divergence=Exact())
    result = log_likelihood(model, sde, x, divergence=Exact(), plan=replace(plan, finest=0))
    assert result.nfe == result.nfe_max == plan.solver.evaluations(plan.steps)
    assert model.samples == 3 * plan.solver.evaluations(plan.steps)


# Plans


class Rough:
    """A denoiser with ripples in the noise level, finer than a grid's steps."""

    def __init__(self, model: GaussianMixture) -> None:
        self.model = model

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, alpha, sigma) * (1 + 0.3 * torch.sin(60 * (sigma / alpha).log()))


def test_a_flow_too_rough_for_so_many_steps_is_said_to_be() -> None:
    sde, model = PATHS["vp"], CountCalls(Rough(mixture((2,))))
    x = on_the_path(mixture((2,)), sde, 2, 1)
    plan = choose_solver(model, sde, x, 1e-4, divergence=Exact(), max_steps=96)
    assert not plan.met
    assert plan.steps == 96
    assert plan.trial_nfe == model.samples - CHECK * (2 + 1)
    result = log_likelihood(model, sde, x, divergence=Exact(), plan=plan)
    assert result.nfe == plan.solver.evaluations(96)  # no sample is solved again
    # The errors that are stated are errors: what 4 times the steps say otherwise.
    assert result.solver_error is not None
    fine = log_likelihood(model, sde, x, divergence=Exact(), solver=plan.solver, ts=plan.grid(sde, 4 * 96))
    error = (result.log_prob - fine.log_prob).abs()
    assert bool((error / 10 < result.solver_error).all())


def test_where_there_is_nothing_to_do_a_plan_takes_the_fewest_steps() -> None:
    """Of a Gaussian of the variable's own spread every number of steps is right: looking for fewer has an end."""
    sde, model = PATHS["vp"], Gaussian(torch.zeros(3).double(), torch.tensor(0.5).double())
    x = on_the_path(model, sde, 4, 1)
    x = x * 0.5 / x.square().mean().sqrt()
    plan = choose_solver(model, sde, x, 1e-2, divergence=Exact())
    assert plan.met
    assert plan.steps == 10


def test_no_samples_have_a_plan_and_a_density() -> None:
    sde, model = PATHS["vp"], mixture((2,))
    x = torch.zeros(0, 2, dtype=torch.float64)
    plan = choose_solver(model, sde, x, 1e-3)
    assert plan.met
    assert plan.trial_nfe == 0
    result = log_likelihood(model, sde, x, tolerance=1e-3, prior_log_prob=at_the_end(model, sde))
    assert result.log_prob.shape == (0,)
    assert result.nfe == 0
    assert result.solver_error is not None
    assert result.solver_error.shape == (0,)
    assert "Density(log_prob (0,)" in repr(result)


@pytest.mark.parametrize(
    ("divergence", "n"), [(Exact(), 1), (Hutchinson(fresh=True), 2), (HutchPlusPlus(1, 1, fresh=False), 2)], ids=repr
)
def test_a_plan_is_what_its_numbers_say(n: int, divergence: Any) -> None:
    sde, model = PATHS["rectified"], CountCalls(mixture((3,)))
    x = on_the_path(mixture((3,)), sde, n, 3)
    plan = choose_solver(model, sde, x, 1e-2, divergence=divergence, noise=PerSampleNoise(0, range(n)))
    assert plan.met
    assert plan.tolerance == 1e-2
    assert plan.trial_nfe == model.samples - (CHECK * (n + min(n - 1, 2)) if n > 1 else 0)
    settings: dict[str, Any] = {"divergence": divergence}
    chosen, given = (
        log_likelihood(mixture((3,)), sde, x, noise=PerSampleNoise(0, range(n)), **settings, **how)
        for how in ({"tolerance": 1e-2}, {"plan": plan})
    )
    assert torch.equal(chosen.log_prob, given.log_prob)
    assert chosen.nfe == given.nfe >= plan.solver.evaluations(plan.steps)


def test_the_plan_of_a_run_does_not_depend_on_its_later_samples_or_the_streams_that_were_used() -> None:
    """The trials read their streams from the beginning, and leave the run's own where they are."""
    sde, model = PATHS["vp"], mixture((3,))
    x, noise = on_the_path(model, sde, 34, 3), PerSampleNoise(0, range(34))
    plans = [
        choose_solver(model, sde, x, 1e-1, noise=noise),
        choose_solver(model, sde, x[:6], 1e-1, noise=PerSampleNoise(0, range(6))),
    ]
    assert torch.equal(plans[0].ts, plans[1].ts)
    assert replace(plans[0], ts=plans[1].ts) == plans[1]
    used, new = (log_likelihood(model, sde, x, noise=n, plan=plans[0]) for n in (noise, PerSampleNoise(0, range(34))))
    assert torch.equal(used.log_prob, new.log_prob)


@pytest.mark.parametrize("divergence", [Hutchinson(), Hutchinson(fresh=False), Exact()], ids=repr)
def test_a_sample_that_is_solved_again_does_not_depend_on_its_batch(divergence: Divergence) -> None:
    """Some of 40 samples take more steps; alone and in the batch they have the same value and error."""
    sde, model = PATHS["vp"], narrow(2)
    x = on_the_path(model, sde, 40, 1)
    plan = choose_solver(model, sde, x, 1e-2, divergence=divergence)
    plan = replace(plan, ts=plan.grid(sde, 20))
    together = log_likelihood(model, sde, x, divergence=divergence, plan=plan, noise=PerSampleNoise(0, range(40)))
    assert together.nfe < together.nfe_max  # type: ignore[operator]
    assert together.nfe_max in (23 + 43, 23 + 43 + 83, 23 + 43 + 83 + 163, 23 + 43 + 83 + 163 + 323)
    for i in (0, 17, 39):
        alone = log_likelihood(model, sde, x[i : i + 1], divergence=divergence, plan=plan, noise=PerSampleNoise(0, [i]))
        assert alone.nfe in (23, 23 + 43, 23 + 43 + 83, 23 + 43 + 83 + 163)  # all of its solutions
        assert_close(alone.log_prob[0], together.log_prob[i], rtol=1e-9, atol=1e-9)
        assert_close(alone.solver_error[0], together.solver_error[i], rtol=1e-6, atol=1e-9)  # type: ignore[index]


def test_a_tolerance_below_rounding_ends_where_more_steps_do_not_help() -> None:
    """In float32, with 4,096 steps allowed: not all of them are taken, and the samples are named."""
    sde, model = PATHS["vp"], mixture((2,))
    x = on_the_path(model, sde, 2, 1).float()
    plan = Plan(choose_solver(model, sde, x, 1e-2, divergence=Exact()).solver, torch.zeros(0), 1e-9, 1.0, True, 0, 4096)
    plan = replace(plan, ts=plan.grid(sde, 32))
    result = log_likelihood(model, sde, x, divergence=Exact(), plan=plan)
    assert result.nfe_max is not None
    assert result.nfe_max < 4096
    assert result.solver_error is not None
    assert bool((bits(result.solver_error, x) > 1e-9).all())


def test_trials_that_are_not_finite_are_refused() -> None:
    sde = PATHS["vp"]
    x = batch(mixture((2,)), 3)
    with pytest.raises(ValueError, match="expected finite log-densities of the trial samples, got NaN or infinity"):
        choose_solver(lambda x, alpha, sigma: x * math.nan, sde, x, 1e-2, divergence=Hutchinson(), max_steps=32)


def test_gradients_flow_through_samples_that_are_solved_again() -> None:
    """By x, against the mixture's own score."""
    sde, model = PATHS["vp"], narrow(2)
    x = on_the_path(model, sde, 40, 1)
    plan = replace(choose_solver(model, sde, x, 1e-2, divergence=Exact()))
    plan = replace(plan, ts=plan.grid(sde, 20))
    x.requires_grad_()
    result = log_likelihood(
        model, sde, x, divergence=Exact(), plan=plan, differentiable=True, prior_log_prob=at_the_end(model, sde)
    )
    assert result.nfe < result.nfe_max  # type: ignore[operator]
    assert result.solver_error is not None
    assert not result.solver_error.requires_grad
    (gradient,) = torch.autograd.grad(result.log_prob.sum(), x)
    score = model.score(x.detach(), *sde.scales(sde.t_min))
    assert float((gradient - score).norm(dim=1).median() / score.norm(dim=1).median()) < 0.02


@pytest.mark.parametrize("name", ["ve"])
def test_a_plan_for_less_error_takes_no_fewer_steps(name: str) -> None:
    sde, model = PATHS[name], mixture((2,))
    x = on_the_path(model, sde, 2, 4)
    plans = [choose_solver(model, sde, x, tolerance, divergence=Exact()) for tolerance in (1e-1, 1e-2)]
    counts = [plan.steps for plan in plans]
    assert counts == sorted(counts)
    assert all(plan.met for plan in plans)


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    sde, model = PATHS["vp"], mixture((2,))
    x = batch(model, 2)
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected a positive tolerance"):
            choose_solver(model, sde, x, tolerance)
    plan = choose_solver(model, sde, x, 1e-1, divergence=Exact())
    for settings in ({"solver": Adaptive()}, {"ts": grids.uniform(sde, 5).flip(0)}, {"plan": plan}):
        with pytest.raises(ValueError, match="a tolerance, a plan, or a solver and its grid, got several"):
            log_likelihood(model, sde, x, tolerance=1e-2, **settings)  # type: ignore[arg-type]


# Learned densities are densities


TOYS = {1: (3.0, 100), 2: (3.0, 60)}  # half a side of the box, and points along it


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def learned(request: pytest.FixtureRequest) -> tuple[int, Denoiser]:
    """A small network trained for a few seconds on two modes."""
    dims, means = request.param, torch.zeros(2, request.param)
    means[:, 0] = torch.tensor([0.8, -0.8])
    data = GaussianMixture(means, torch.tensor([0.3, 0.4]), torch.tensor([0.4, 0.6]))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    denoiser = Denoiser(MLP((dims,), width=32, blocks=2), precondition.v)
    state = TrainingState(denoiser, torch.optim.Adam(denoiser.parameters(), lr=1e-2))
    loader = [data.sample(256, generator) for _ in range(40)]
    for _ in train(denoiser, VPSDE(), loader, images=256 * 200, state=state, schedule=lambda n: 1 - n / (256 * 201)):
        pass
    return dims, denoiser.double().eval().requires_grad_(False)


def test_the_density_of_a_trained_model_integrates_to_one(learned: tuple[int, Denoiser]) -> None:
    """The flow is a bijection, whatever was learned: a sum over a grid of its density is 1, and its mean the data's."""
    (dims, model), sde = learned, VPSDE()
    half, points = TOYS[dims]
    line = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 * half - half
    x = torch.cartesian_prod(*[line] * dims).reshape(-1, dims)
    scored = torch.Generator().manual_seed(1)
    trials = x[torch.randperm(len(x), generator=scored)[:6]]
    plan = choose_solver(model, sde, trials, 1e-2, divergence=Exact())
    density = log_likelihood(model, sde, x, divergence=Exact(), plan=plan).log_prob.exp()
    cell = (2 * half / points) ** dims
    assert float(density.sum() * cell) == pytest.approx(1, abs=0.01)
    # Something was learned: the mean of 0.4 at 0.8 and 0.6 at -0.8.
    mean = (density[:, None] * x).sum(0) * cell
    assert_close(mean, torch.tensor([-0.16, 0.0][:dims]).double(), rtol=0, atol=0.1)


def test_a_choice_and_the_density_after_it_tell_their_progress_and_print_in_a_line() -> None:
    """From the first evaluations of the first trial up to all of the work, never backwards."""
    sde, model, shares = PATHS["vp"], CountCalls(mixture((3,))), list[tuple[float, int]]()
    x = on_the_path(mixture((3,)), sde, 12, 3)
    result = log_likelihood(
        model, sde, x, divergence=Exact(), tolerance=1e-2, progress=lambda share: shares.append((share, model.calls))
    )
    values = [share for share, _ in shares]
    assert shares[0][1] < 12
    assert 0 < values[0] < 0.02
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert repr(result).startswith("Density(log_prob (12,), mean ")
    assert result.solver_error is not None
    assert f"solver_error {float(result.solver_error.max()):.2g} nats (largest), nfe {result.nfe:g}, " in repr(result)
    assert "latent (12, 3), parts ['prior', 'change']" in repr(result)
    plan = choose_solver(mixture((3,)), sde, x, 1e-2, divergence=Exact())
    assert f"{plan.steps} steps, tolerance 0.01 bits/dim, {plan.trial_nfe} evaluations to choose" in repr(plan)
    assert "tensor" not in repr(plan) + repr(result)


def test_a_choice_costs_a_few_hundred_evaluations() -> None:
    """In all, over its 6 samples. Earlier versions took 13,000."""
    for name, tolerance in (("cosine", 1e-2), ("rectified", 1e-3)):
        sde, model = PATHS[name], mixture((2,))
        x = on_the_path(model, sde, 32, 1)
        plan = choose_solver(model, sde, x, tolerance, divergence=Exact(), prior_log_prob=at_the_end(model, sde))
        assert plan.met
        assert plan.trial_nfe < 1000
