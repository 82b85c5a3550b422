"""Solvers of inverse problems: laws of Gaussian priors in closed form, DDRM's published step, and known values."""

import math

import pytest
import torch
from oracles import plain
from torch import Tensor
from torch.testing import assert_close

from scorefield.models.analytic import GaussianMixture
from scorefield.models.guidance import InverseProblem
from scorefield.models.measurements import SVD, Function, Linear
from scorefield.sde_lib import SDE, VPSDE, DiscreteVPSDE
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers import DAPS, DDRM, Progress, RePaint, Schedule, Solver, SplitGibbs, grids, sample
from scorefield.solvers.restoration.conditional import draw
from scorefield.solvers.restoration.problem import problem_of

VP = VPSDE()
SOLVERS: dict[str, Solver] = {
    "repaint": RePaint(jump=2, times=2),
    "daps": DAPS(steps=2),
    "split_gibbs": SplitGibbs(steps=2),
    "ddrm": DDRM(),
}


class Dense(Linear):
    """A matrix, (m, d), whose products are sums within a sample."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((matrix.shape[1],))
        self.a = matrix

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (len(self.a),)

    def measure(self, x0: Tensor) -> Tensor:
        return (x0[:, None] * self.a.to(x0)).sum(2)

    def transpose(self, y: Tensor) -> Tensor:
        return (y[:, :, None] * self.a.to(y)).sum(1)

    def svd(self) -> SVD:
        u, s, v_t = torch.linalg.svd(self.a, full_matrices=False)
        return SVD(s, Dense(v_t).measure, Dense(v_t).transpose, Dense(u.T).measure, Dense(u.T).transpose)


class Gathered(Dense):
    """The values at some places of a vector. What is elsewhere is not read."""

    def __init__(self, places: list[int], dims: int) -> None:
        super().__init__(torch.eye(dims, dtype=torch.float64)[places])
        self.places = places

    def measure(self, x0: Tensor) -> Tensor:
        return x0[:, self.places]


class Corner(Linear):
    """The upper left corner of an image, in float32."""

    def __init__(self) -> None:
        super().__init__((3, 4, 4))

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (3, 2, 2)

    def measure(self, x0: Tensor) -> Tensor:
        return x0[:, :, :2, :2]

    def transpose(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y, (0, 2, 0, 2))

    def svd(self) -> SVD:
        s = torch.ones(12, dtype=torch.float64)
        as_image = lambda c: self.transpose(c.reshape(-1, 3, 2, 2))  # noqa: E731
        return SVD(
            s, lambda x: self.measure(x).flatten(1), as_image, lambda y: y.flatten(1), lambda c: c.reshape(-1, 3, 2, 2)
        )


def solve(
    solver: Solver, problem: InverseProblem, y: list[float], count: int, sde: SDE = VP, steps: int = 20
) -> Tensor:
    """So many answers to one measurement."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    start = sde.prior((count, *problem.measurement.shape), noise=noise, dtype=torch.float64)
    cond = {"y": torch.tensor(y, dtype=torch.float64).expand(count, -1)}
    return solver(problem, sde, start, grids.log_snr(sde, steps), cond=cond, noise=noise)


def assert_moments(x: Tensor, mean: Tensor, std: Tensor) -> None:
    """Means and deviations of independent draws within 4.5 standard errors: a false alarm of 7e-6 a number."""
    assert_close(x.mean(0), mean, rtol=0, atol=4.5 * float(std.max()) / len(x) ** 0.5)
    assert_close(x.std(0), std, rtol=4.5 / (2 * len(x)) ** 0.5, atol=0)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_known_values_are_exact_hidden_ones_have_no_influence_and_samples_do_not_meet(solver: Solver) -> None:
    measurement, count = Gathered([0, 2, 3], 5), 3
    problem = InverseProblem(plain((5,)), measurement, 0.0)
    truth = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    hidden = truth.clone()
    hidden[:, [1, 4]] = torch.nan
    y = measurement(hidden)
    x0 = sample(problem, VP, (count, 5), solver=solver, steps=6, cond={"y": y}, seed=3)
    assert torch.equal(measurement(x0), y)
    assert bool(x0.isfinite().all())
    for std in (0.0, 0.2):
        noisy = InverseProblem(plain((5,)), measurement, std)
        batch = sample(noisy, VP, (count, 5), solver=solver, steps=6, cond={"y": y}, seed=3)
        single = sample(noisy, VP, (1, 5), solver=solver, steps=6, cond={"y": y[1:2]}, seed=3, first=1)
        assert torch.equal(batch[1:2], single)


@pytest.mark.parametrize("solver", [DAPS(steps=2), SplitGibbs(steps=2), DDRM()], ids=["daps", "split_gibbs", "ddrm"])
def test_exact_measurements_of_any_matrix_hold(solver: Solver) -> None:
    a = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.5, -1.0, 3.0, 0.0]], dtype=torch.float64)
    x0 = solve(solver, InverseProblem(plain((4,)), Dense(a), 0.0), [0.7, -0.4], 3, steps=6)
    assert_close(x0 @ a.T, torch.tensor([0.7, -0.4], dtype=torch.float64).expand(3, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("linear", [True, False])
def test_the_conditional_draw_is_that_of_a_gaussian(linear: bool) -> None:
    a = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]], dtype=torch.float64)
    count, std, variance = 3000, 1.0, torch.tensor(0.8, dtype=torch.float64)
    measurement = Dense(a) if linear else Function(lambda x: x @ a.T.to(x), (3,))
    y = torch.tensor([0.7, -0.4], dtype=torch.float64).expand(count, -1)
    mean = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).expand(count, -1)
    bound = BoundDenoiser(InverseProblem(plain((3,)), measurement, std), {"y": y}, count)
    generator = torch.Generator().manual_seed(0)
    problem = problem_of(bound, mean, "this test")
    z = draw(problem, mean, variance, lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype), 120)
    precision = torch.eye(3, dtype=torch.float64) / variance + a.T @ a / std**2
    covariance = torch.linalg.inv(precision)
    exact = covariance @ (mean[0] / variance + a.T @ y[0] / std**2)
    whitened = (z - exact) @ torch.linalg.cholesky(precision)
    assert_moments(whitened, torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert_close(whitened.T.cov(), torch.eye(3, dtype=torch.float64), rtol=0, atol=4.5 * (2 / count) ** 0.5)


def test_daps_has_the_law_of_its_recursion_on_a_gaussian() -> None:
    prior, std, y, count = plain((2,)), 0.3, 1.2, 4000
    x0 = solve(DAPS(steps=1), InverseProblem(prior, Gathered([0], 2), std), [y], count)
    m, s = prior.means[0], prior.stds[0]
    ts = grids.log_snr(VP, 20)
    alpha, sigma = VP.scales(ts)
    mean, variance = torch.zeros(2, dtype=torch.float64), sigma[0].square().expand(2)
    for i in range(len(ts)):
        # D(x) = m + gain (x - alpha m); then N(D, rho^2) N(y; x0, std^2) where the value is known.
        gain, rho2 = alpha[i] * s**2 / ((alpha[i] * s) ** 2 + sigma[i] ** 2), (sigma[i] / alpha[i]) ** 2
        trust = torch.tensor([rho2 / (rho2 + std**2), 0.0], dtype=torch.float64)
        mean = (1 - trust) * (m + gain * (mean - alpha[i] * m)) + trust * y
        variance = ((1 - trust) * gain) ** 2 * variance + rho2 * (1 - trust)
        if i + 1 < len(ts):
            mean, variance = alpha[i + 1] * mean, alpha[i + 1] ** 2 * variance + sigma[i + 1] ** 2
    assert_moments(x0, mean, variance.sqrt())


def test_split_gibbs_tends_to_the_posterior_of_a_measurement_with_rho_more_noise() -> None:
    prior, std, least, y, count = plain((2,)), 0.3, 0.4, 3.0, 4000
    solver = SplitGibbs(steps=60, least=least)
    x0 = solve(solver, InverseProblem(prior, Gathered([0], 2), std), [y], count)[:, :1]
    m, s = prior.means[0, :1], prior.stds[0, :1]
    noise2 = std**2 + least**2
    variance = 1 / (1 / s**2 + 1 / noise2)
    mean = variance * (m / s**2 + y / noise2)
    # 60 ancestral steps leave 3% of the deviation. Without rho it would be 35% less.
    assert_close(x0.mean(0), mean, rtol=0, atol=4.5 * float(variance.sqrt()) / count**0.5 + 0.01)
    assert_close(x0.std(0), variance.sqrt(), rtol=4.5 / (2 * count) ** 0.5 + 0.03, atol=0)


def test_repaint_tends_to_the_conditional_of_correlated_values_and_replacement_does_not() -> None:
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    problem = InverseProblem(GaussianMixture(zero, None, one, covariances=covariance[None]), Gathered([0], 2), 0.0)
    means = {times: float(solve(RePaint(1, times), problem, [1.5], 400)[:, 1].mean()) for times in (1, 12)}
    assert abs(means[12] - 1.35) < 0.2 * abs(means[1] - 1.35)


def test_repaint_with_noise_is_right_for_a_known_value() -> None:
    prior, std, y, count = plain((1,)), 0.3, 1.2, 2000
    x0 = solve(RePaint(2, 2), InverseProblem(prior, Gathered([0], 1), std), [y], count, steps=400)
    variance = 1 / (1 / prior.stds[0] ** 2 + 1 / std**2)
    mean = variance * (prior.means[0] / prior.stds[0] ** 2 + y / std**2)
    assert_moments(x0, mean, variance.sqrt())


def test_ddrm_takes_the_published_steps() -> None:
    """Run with efficient_generalized_steps of github.com/ermongroup/ddrm @32b6b3c, in float64."""
    v, _ = torch.linalg.qr(torch.sin(torch.arange(16.0, dtype=torch.float64).reshape(4, 4) ** 1.3 + 1))
    u, _ = torch.linalg.qr(torch.cos(torch.arange(4.0, dtype=torch.float64).reshape(2, 2) * 2 + 1))
    a = u @ torch.diag(torch.tensor([2.0, 0.05], dtype=torch.float64)) @ v[:, :2].T

    def denoiser(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * (0.5 * x + 0.1 * torch.sin(x[:, [1, 0, 3, 2]]))) / alpha

    x, after, last = torch.tensor(
        [
            [-3.3227357394481403, 0.38839422064525225, 1.404806879613226, 2.4020910981240524],
            [-5.604228068666356, 0.8967609423788466, 2.4315896700999917, 5.231488344826686],
            [-4.991074978004882, 0.7728749455664393, 2.183666543444213, 4.611844110460018],
        ],
        dtype=torch.float64,
    )[:, None].unbind(0)
    z = torch.tensor([[0.3, -1.1, 0.6, 0.9]], dtype=torch.float64)
    sde, solver = DiscreteVPSDE("linear"), DDRM(eta_b=0.9)
    schedule = Schedule(sde, torch.tensor([0.501, 0.101], dtype=torch.float64), x)
    y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    bound = BoundDenoiser(InverseProblem(denoiser, Dense(a), 0.1), {"y": y}, 1)
    got, _ = solver.step(bound, x, schedule, 0, lambda _: z, None)
    assert_close(got, after, rtol=1e-9, atol=0)
    assert_close(solver.finish(problem_of(bound, x, "DDRM"), after, schedule, lambda _: z), last, rtol=1e-9, atol=0)


def test_ddrm_starts_from_the_marginal_given_the_measurement() -> None:
    problem = InverseProblem(plain((2,)), Gathered([0], 2), 0.5)
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    schedule = Schedule(VP, torch.tensor([0.5, 0.1], dtype=torch.float64), x)
    alpha, sigma = schedule.scalars(0).alpha, schedule.scalars(0).sigma
    bound = BoundDenoiser(problem, {"y": torch.full((4000, 1), 2.0, dtype=torch.float64)}, 4000)
    start = DDRM().begin(problem_of(bound, x, "DDRM"), sigma * x, schedule)
    assert torch.equal(start[:, 1], sigma * x[:, 1])
    # y = x0 + 0.5 n has a part of the level's noise already.
    std = torch.tensor([math.sqrt(sigma**2 - (0.5 * alpha) ** 2)], dtype=torch.float64)
    assert_moments(start[:, :1], torch.tensor([2 * alpha], dtype=torch.float64), std)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_images_progress_and_an_empty_batch(solver: Solver) -> None:
    problem = InverseProblem(plain((3, 4, 4)), Corner(), 0.1)
    seen: list[Progress] = []
    cond = {"y": torch.zeros(2, 3, 2, 2)}
    x0 = sample(problem, VP, (2, 3, 4, 4), solver=solver, steps=6, cond=cond, on_step=seen.append)
    assert x0.shape == (2, 3, 4, 4)
    assert x0.dtype == torch.float32
    assert [each.step for each in seen] == list(range(1, seen[-1].steps + 1))
    assert seen[-1].t == VP.t_min
    assert all(each.x0 is not None for each in seen)
    cond = {"y": torch.zeros(0, 3, 2, 2)}
    assert len(sample(problem, VP, (0, 3, 4, 4), solver=solver, steps=3, cond=cond)) == 0


def test_bad_input_is_refused_in_one_line() -> None:
    ts, x = grids.log_snr(VP, 3), torch.zeros(2, 3)
    mask, summed = Gathered([0], 3), Function(lambda x: x.sum(1, keepdim=True) ** 2, (3,))
    y, prior = torch.zeros(2, 1), plain((3,))
    square = Function(lambda x: x[:, :1] ** 2, (3,))
    for solver, denoiser, cond, said in (
        (DAPS(), prior, {}, "expected an inverse problem for DAPS"),
        (RePaint(), InverseProblem(prior, mask, 0.1), {}, r"got none: pass one row for each sample, as cond=\{'y'"),
        (RePaint(), InverseProblem(prior, mask, 0.1), {"y": y.expand(2, 2)}, r"expected a measurement y \(2, 1\)"),
        (RePaint(), InverseProblem(prior, Dense(torch.ones(1, 3)), 0.1), {"y": y}, "expected a mask for RePaint"),
        (RePaint(), InverseProblem(prior, summed, 0.1), {"y": y}, "expected a mask for RePaint"),
        (DDRM(), InverseProblem(prior, square, 0.1), {"y": y}, "expected a measurement with known singular values"),
        (SplitGibbs(), InverseProblem(prior, square, 0.0), {"y": y}, "expected a noise_std above 0 for SplitGibbs"),
        (DAPS(), InverseProblem(prior, Gathered([0], 4), 0.1), {"y": y}, r"expected samples \(B, 4\)"),
    ):
        with pytest.raises(ValueError, match=said):
            solver(denoiser, VP, x, ts, cond=cond)
    for make in (lambda: RePaint(0), lambda: DAPS(0), lambda: SplitGibbs(least=-1.0), lambda: DDRM(eta=2.0)):
        with pytest.raises(ValueError, match=r"^expected .*, got"):
            make()
