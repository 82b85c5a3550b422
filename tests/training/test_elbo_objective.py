"""The bound as a loss: Gaussians, whose bound, variance and gradients are integrals, and a run that is interrupted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from scorefield.likelihood import GaussianDecoder, LevelDecoder, elbo
from scorefield.models import MLP, Denoiser, Gaussian
from scorefield.models.precondition import eps as predicts_eps
from scorefield.sde_lib import SDE, VPSDE, FrozenVP, LearnedVP
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.sde_lib.quantise import cell_centres
from scorefield.solvers import PerSampleNoise
from scorefield.training import EMA, Model, TrainingState, latest, load, run, save, times
from scorefield.training.adam import adam
from scorefield.training.objectives.elbo import elbo_loss, objective
from scorefield.training.times import Measured

LOW, HIGH = -6.0, 8.0
D = 16


def exact(std: float, dims: int = D) -> Gaussian:
    """The denoiser of N(0, std^2) in each dimension."""
    return Gaussian(torch.zeros(dims, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


def normal(*shape: int, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# Of the exact denoiser |eps_hat - eps|^2 is v chi^2_D with v = a^2 s^2 / (a^2 s^2 + sigma^2), so that one draw of the
# diffusion part, in nats/dim, has the mean c v and the mean square c^2 v^2 (1 + 2 / D), where c is its weight.


def error_of(log_snr: Tensor, std: float) -> Tensor:
    signal = log_snr.sigmoid() * std**2
    return signal / (signal + (-log_snr).sigmoid())


def mean_and_variance(log_snr: Tensor, cost: Tensor, std: float) -> tuple[float, float]:
    """Of one draw, whose position is uniform on the given nodes (K,)."""
    mean, square = (cost * error_of(log_snr, std)).mean(), (cost * error_of(log_snr, std)).square().mean()
    return float(mean), float(square * (1 + 2 / D) - mean.square())


NODES = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


def of_path(path: LearnedVP, std: float) -> tuple[float, float]:
    with torch.no_grad():
        slope = path.share_and_slope(NODES)[1]
        return mean_and_variance(path.log_snr(NODES), (path.high - path.low) * slope / 2, std)


def least_variance(std: float) -> float:
    mean, _ = mean_and_variance(HIGH - (HIGH - LOW) * NODES, torch.tensor((HIGH - LOW) / 2), std)
    return mean**2 * 2 / D


def losses_of(path: SDE, std: float, n: int, generator: Generator, times_: times.Times = times.stratified) -> Tensor:
    """The losses of n draws with the exact denoiser, with a graph to the path."""
    t = times_(path, n, generator)
    importance = times_.weight(path, t) if isinstance(times_, times.ImportanceTimes) else None
    noises = [normal(n, D, generator=generator) for _ in range(3)]
    return elbo_loss(
        exact(std), path, std * noises[0], t, noises[1], noises[2], decoder=GaussianDecoder(), importance=importance
    )[0]


@pytest.mark.parametrize(("std", "straight", "least"), [(1.0, 11.57, 2.00), (0.3, 10.28, 0.978)])
def test_measured_times_come_near_the_least_variance_in_50_batches(std: float, straight: float, least: float) -> None:
    path, measured, generator = FrozenVP(low=LOW, high=HIGH), Measured(), Generator().manual_seed(0)
    for _ in range(50):
        t = measured(path, 256, generator)
        x0, eps = std * normal(256, D, generator=generator), normal(256, D, generator=generator)
        error = (exact(std).noise(path.perturb(x0, t, eps), *path.scales(t)) - eps).square().mean(1)
        measured.see(path, path.log_snr(t), error)
    assert mean_and_variance(HIGH - (HIGH - LOW) * NODES, torch.tensor(7.0), std)[1] == pytest.approx(
        straight, rel=1e-3
    )
    assert least_variance(std) == pytest.approx(least, rel=1e-2)
    # One draw's variance at these times, in the same integral with weights w and the density 1 / w.
    weight = measured.density.weight(NODES)
    mean, _ = mean_and_variance(HIGH - (HIGH - LOW) * NODES, torch.tensor(7.0), std)
    square = (7.0 * error_of(HIGH - (HIGH - LOW) * NODES, std)).square() * (1 + 2 / D)
    assert float((square * weight).mean()) - mean**2 < 1.15 * least_variance(std)


def test_the_optimal_path_of_gaussian_data_is_a_line_in_softplus() -> None:
    # softplus(lambda + 2 ln s) falls linearly in t: cost times v is then the same at all times.
    std = 0.3
    ends = [math.log1p(math.exp(end) * std**2) for end in (HIGH, LOW)]
    level = ends[0] + (ends[1] - ends[0]) * NODES
    log_snr = (level.exp() - 1).log() - 2 * math.log(std)
    slope = -np.gradient(log_snr.numpy(), NODES.numpy())
    _, variance = mean_and_variance(log_snr, torch.from_numpy(slope) / 2, std)
    assert variance == pytest.approx(least_variance(std), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("std", [1.0, 0.3])
def test_a_monotone_interior_comes_near_the_least_variance(std: float) -> None:
    path, generator = LearnedVP("monotone", LOW, HIGH, size=64), Generator().manual_seed(0)
    optimizer = torch.optim.Adam(path.weights, lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        losses_of(path, std, 256, generator).mean().backward()
        optimizer.step()
    assert of_path(path, std)[1] < 1.7 * least_variance(std)


def test_the_interiors_gradient_is_that_of_the_variance() -> None:
    std, path, generator = 0.5, LearnedVP("monotone", LOW, HIGH, size=3), Generator().manual_seed(0)
    with torch.no_grad():
        for weight in path.weights:
            weight.add_(torch.rand(weight.shape, generator=generator))
    gradients = []
    for _ in range(20):
        path.zero_grad()
        losses_of(path, std, 20_000, generator).mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in path.weights if weight.grad is not None]))
    got, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / math.sqrt(20)
    expected, h = [], 1e-3
    for weight in path.weights:
        for i in range(weight.numel()):
            at = []
            for move in (h, -2 * h, h):
                with torch.no_grad():
                    weight.view(-1)[i] += move
                at.append(of_path(path, std)[1])
            expected.append((at[0] - at[1]) / (2 * h))
    # The mean of 2 L dL is the derivative of the variance, since that of the mean is 0. Two in a hundred of the
    # largest, and four standard errors of 400,000 draws (a false alarm in 1,500 runs of ten numbers; fixed seed).
    difference = (got - torch.tensor(expected)).abs()
    assert bool((difference < 0.02 * torch.tensor(expected).abs().max() + 4 * error).all())
    assert float(error.max()) < 0.05 * max(map(abs, expected))
    # The component along the expected gradient averages the errors: within 2%.
    truth = torch.tensor(expected)
    assert float(got @ truth / (truth @ truth)) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("interior", ["monotone", "polynomial", "bins"])
def test_the_bound_does_not_know_the_interior_and_knows_the_ends(interior: str) -> None:
    std = 0.5

    def bound(path: LearnedVP) -> float:
        """Minus the exact ELBO in nats/dim, without the decoder; by a rule for each of the 64 lines of "bins"."""
        nodes, weights = np.polynomial.legendre.leggauss(24)
        t = torch.from_numpy((np.arange(64)[:, None] + (nodes + 1) / 2) / 64).flatten()
        with torch.no_grad():
            slope = path.share_and_slope(t)[1]
            cost = (path.high - path.low).double() * slope / 2 * error_of(path.log_snr(t), std)
            signal = path.low.double().exp() * std**2 / 2
        return float((cost.reshape(64, -1) @ torch.from_numpy(weights / 128)).sum() + signal)

    path = LearnedVP(
        interior, LOW, HIGH, size=None if interior == "polynomial" else 8 if interior == "monotone" else 64
    )
    before, generator = bound(path), Generator().manual_seed(0)
    with torch.no_grad():
        for weight in path.weights:
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    assert bound(path) == pytest.approx(before, abs=1e-10)
    # What each part gives each end, with span = high - low: the diffusion is half of the integral of the error between
    # them, the prior e^low s^2 / 2, and the decoder's Gaussian knows the high end alone.
    n = 30_000
    x0, eps, start = (scale * normal(n, D, generator=generator) for scale in (std, 1.0, 1.0))
    t = times.stratified(path, n, generator)
    _, parts = elbo_loss(exact(std), path, x0, t, eps, start, decoder=GaussianDecoder())
    at = [float(error_of(torch.tensor(end, dtype=torch.float64), std)) for end in (LOW, HIGH)]

    def decoded(end: float) -> float:
        ratio = math.exp(-end)
        return std**2 / (std**2 + ratio) / 2 + math.log(ratio) / 2

    by_high = (decoded(HIGH + 1e-4) - decoded(HIGH - 1e-4)) / 2e-4
    truth = {  # by low with span fixed, and by span
        "diffusion": ((at[1] - at[0]) / 2, at[1] / 2),
        "prior": (math.exp(LOW) * std**2 / 2, 0.0),
        "reconstruction": (by_high, by_high),
    }
    for name, expected in truth.items():
        got = torch.autograd.grad(parts[name].mean(), [path.low, path.span], retain_graph=True, allow_unused=True)
        for gradient, value in zip(got, expected, strict=True):
            # The deviation of a draw is about 1.5: five errors of 30,000 draws. The prior's is 1% of its value.
            slack = 5 * 1.5 / math.sqrt(n) if name != "prior" else 0.05 * math.exp(LOW) * std**2 / 2
            assert (0.0 if gradient is None else float(gradient)) == pytest.approx(value, abs=slack), name


def test_the_loss_of_T_steps_tends_to_that_of_continuous_time() -> None:
    std, path = 0.5, FrozenVP(low=-5.0, high=13.3)
    ends = torch.tensor([-5.0, 13.3], dtype=torch.float64)
    softplus = torch.nn.functional.softplus(ends + 2 * math.log(std))
    continuous = float(softplus[1] - softplus[0]) / 2
    expected = {10: "9.77", 50: "1.126", 100: "0.530", 250: "0.2045", 1000: "0.0502", 10_000: "0.0050"}
    for steps, gap in expected.items():
        # The cost at t in the middle of each step, times the exact error at the step's noisier end.
        t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        zeros = torch.zeros(steps, 1, dtype=torch.float64)

        class Known:
            """A denoiser whose error in eps is sqrt(v) where eps is 0."""

            def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
                return error_of(2 * (alpha / sigma).log(), std).sqrt()[:, None]

            def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
                return x

        _, parts = elbo_loss(Known(), path, zeros, t, zeros, zeros, decoder=GaussianDecoder(), steps=steps)
        got = float(parts["diffusion"].mean()) - continuous
        assert f"{got:.{len(gap.partition('.')[2])}f}" == gap
        log_snr = 13.3 - 18.3 * torch.arange(steps + 1, dtype=torch.float64) / steps
        chain = (torch.expm1(log_snr[:-1] - log_snr[1:]) * error_of(log_snr[1:], std)).sum() / 2
        assert got + continuous == pytest.approx(float(chain), abs=1e-9)


@pytest.mark.parametrize("steps", [None, 50])
@pytest.mark.parametrize("path", [VPSDE(t_min=1e-3), LearnedVP("bins", -6.0, 6.0)])
def test_its_mean_is_the_bound_of_the_likelihood(path: SDE, steps: int | None) -> None:
    generator = Generator().manual_seed(0)
    torch.manual_seed(0)
    denoiser = Denoiser(MLP((3,), width=8), predicts_eps).double()
    nn.init.normal_(denoiser.net.head.weight, std=0.3)
    x0 = cell_centres(torch.randint(17, (4, 3), generator=generator), 17).double()
    draws = 2000
    many = x0.repeat(draws, 1)
    t = times.stratified(path, len(many), generator)[torch.randperm(len(many), generator=generator)]
    noises = [normal(*many.shape, generator=generator) for _ in range(2)]
    with torch.no_grad():
        _, parts = elbo_loss(denoiser, path, many, t, *noises, decoder=LevelDecoder(17), steps=steps)
        source = PerSampleNoise(1, range(4))
        bound = elbo(
            denoiser, path, x0, decoder=LevelDecoder(17), steps=steps, draws=100, decodings=50, noise=source,
            uniform=source.uniform,
        )  # fmt: skip
    assert bound.std_error is not None
    for part, value in bound.parts.items():
        own = parts[part].reshape(draws, 4)
        error = (own.std(0).square() / draws + (bound.std_error / 3).square()).sqrt()
        # Four standard errors each; 3 x 4 x 4 values: a false alarm in 220 seeds.
        assert bool(((own.mean(0) + value / 3).abs() < 4 * error + 1e-9).all()), part


def test_a_density_of_times_changes_the_error_of_a_bound_and_not_its_mean() -> None:
    path, model = FrozenVP(low=LOW, high=HIGH), exact(0.3)
    x0 = 0.3 * normal(400, D, generator=Generator().manual_seed(0))
    probability = error_of(HIGH - (HIGH - LOW) * (torch.arange(64, dtype=torch.float64) + 0.5) / 64, 0.3)
    density = LevelDensity(0.95 * probability / probability.sum() + 0.05 / 64)
    results = []
    for each in (None, density):
        source = PerSampleNoise(0, range(400))
        results.append(
            elbo(
                model, path, x0, decoder=GaussianDecoder(), draws=16, density=each, noise=source, uniform=source.uniform
            )
        )
    uniform, measured = results
    assert uniform.std_error is not None
    assert measured.std_error is not None
    difference = uniform.log_prob - measured.log_prob
    # Four standard errors over 400 samples: a false alarm in 16,000 runs.
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(400)
    # Stratified draws leave sd(mse | lambda) alone, for which this density is the best one.
    assert float(measured.std_error.square().mean()) < 0.8 * float(uniform.std_error.square().mean())
    with pytest.raises(ValueError, match="expected a density of times in continuous time"):
        elbo(model, path, x0, decoder=GaussianDecoder(), steps=10, density=density)


def learning(seed: int = 0) -> TrainingState:
    torch.manual_seed(seed)
    model = Model(Denoiser(MLP((4,), width=8, blocks=1), predicts_eps), LearnedVP("linear", -5.0, 7.5))
    return TrainingState(model, adam(model, 1e-2), EMA(model, 0.9), times=Measured(bins=8))


def go(state: TrainingState, images: int, accumulate: int = 1) -> None:
    assert isinstance(state.model.sde, LearnedVP)
    assert state.times is not None
    bound = objective(state.model.sde, state.optimizer, decoder=LevelDecoder(17), times=state.times)
    k = torch.randint(17, (64, 4), generator=Generator().manual_seed(0))
    batches = torch.split(cell_centres(k, 17), 16)
    position = state.images // 16 % len(batches)
    for _ in run(state, [bound], batches[position:] + batches[:position], images=images, accumulate=accumulate):
        pass


def numbers_of(state: TrainingState) -> Tensor:
    assert state.times is not None
    weights = [
        weight.detach().double().flatten() for weight in (*state.model.parameters(), *state.ema.model.parameters())
    ]
    return torch.cat([*weights, state.times.sums.flatten()])


def test_a_learned_path_and_measured_times_resume_to_the_same_bits(tmp_path: Path) -> None:
    unbroken, first = learning(), learning()
    go(unbroken, 16 * 12)
    go(first, 16 * 5)
    save(tmp_path, first)
    second = learning(seed=7)
    checkpoint = latest(tmp_path)
    assert checkpoint is not None
    load(checkpoint, second)
    go(second, 16 * 12)
    assert torch.equal(numbers_of(unbroken), numbers_of(second))
    start = learning()
    assert isinstance(unbroken.model.sde, LearnedVP)
    assert isinstance(start.model.sde, LearnedVP)
    assert float((unbroken.model.sde.high - start.model.sde.high).detach().abs()) > 1e-2  # the ends have moved
    assert not torch.equal(unbroken.times.density.probability, Measured(bins=8).density.probability)  # type: ignore[union-attr]


def test_a_batch_in_parts_is_the_batch() -> None:
    whole, parts = learning(), learning()
    go(whole, 16 * 4)
    go(parts, 16 * 4, accumulate=4)
    # Sums of 16 gradients in another order, 6e-8 of their size, scaled by Adam to steps of 1e-2, four times.
    assert_close(numbers_of(whole), numbers_of(parts), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "given", "steps", "message"),
    [
        (VPSDE(), times.stratified, 1, "expected 2 steps of the ELBO's chain or more, got 1"),
        (VPSDE(), times.log_normal(), None, "expected times of the ELBO's integral"),
        (VPSDE(), Measured(), 10, "expected stratified or uniform times of the ELBO's 10 steps"),
        (LearnedVP("bins"), Measured(), None, "expected stratified times to train the interior bins"),
    ],
)
def test_times_that_do_not_fit_are_refused(path: SDE, given: times.Times, steps: int | None, message: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=message):
        objective(path, optimizer, decoder=LevelDecoder(17), times=given, steps=steps)


def test_measured_times_refuse_other_bins_and_odd_settings() -> None:
    with pytest.raises(ValueError, match="expected 8 bins of measured times, got 64"):
        Measured(bins=8).load_state_dict(Measured().state_dict())
    for settings in ({"bins": 0}, {"floor": 0.0}, {"decay": 1.0}):
        with pytest.raises(ValueError, match="expected 1 bin or more"):
            Measured(**settings)
