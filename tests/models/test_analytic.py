"""The exact models, which judge all the rest: against quadrature, dense grids, torch.distributions and autograd."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import PATHS, SHAPES, batch, gaussian, mixture
from scipy.integrate import quad
from scipy.special import logsumexp, softmax
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from scorefield.models.analytic import Empirical, Gaussian, GaussianMixture

# Variance-preserving, exploding and straight-line scales; nearly clean, and nearly all noise.
SCALES = ((0.8, 0.6), (1.0, 0.05), (1.0, 20.0), (0.3, 0.7), (0.02, 1.0))
scales = pytest.mark.parametrize(("alpha", "sigma"), SCALES)
shapes = pytest.mark.parametrize("shape", SHAPES[2:], ids=str)


def points(model: GaussianMixture, alpha: float, sigma: float, n: int = 5) -> Tensor:
    """Points of the marginal, and as many twice as far out."""
    x0 = batch(model, n)
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=x0.dtype)
    return torch.cat([x, 2 * x])


def marginal(model: GaussianMixture, alpha: float, sigma: float) -> MixtureSameFamily:
    """The same marginal, by torch.distributions."""
    dims = model.means.ndim - 1
    each = Normal(alpha * model.means, torch.sqrt((alpha * model.stds) ** 2 + sigma**2))
    return MixtureSameFamily(Categorical(model.weights), Independent(each, dims))


# Gaussian mixtures


@pytest.mark.parametrize("x", [-2.5, 0.1])
@scales
def test_mixture_in_one_dimension_is_what_quadrature_finds(alpha: float, sigma: float, x: float) -> None:
    means, stds, weights = [-1.0, 0.5, 2.0], [0.3, 0.8, 0.1], [0.2, 0.5, 0.3]
    model = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[m] for m in means], stds, weights)))

    def normal(z: float) -> float:
        return math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    def joint(x0: float) -> float:
        prior = sum(w * normal((x0 - m) / s) / s for w, m, s in zip(weights, means, stds, strict=True))
        return prior * normal((x - alpha * x0) / sigma) / sigma

    def integral(f: Callable[[float], float]) -> float:
        # Split at each mode and at the measurement; tails beyond +-8 hold less than 1e-20.
        peaks = sorted({*means, min(max(x / alpha, -7.9), 7.9)})
        return quad(lambda x0: f(x0) * joint(x0), -8, 8, points=peaks, limit=500, epsabs=0, epsrel=1e-11)[0]

    mass = integral(lambda x0: 1.0)
    mean, noise = integral(lambda x0: x0) / mass, integral(lambda x0: (x - alpha * x0) / sigma) / mass
    at = torch.tensor([[x]], dtype=torch.float64)
    # quad's relative tolerance of 1e-11, times what cancels between the modes.
    assert float(model.log_prob(at, alpha, sigma)) == pytest.approx(math.log(mass), abs=1e-9)
    assert float(model(at, alpha, sigma)) == pytest.approx(mean, rel=1e-8, abs=1e-9)
    assert float(model.noise(at, alpha, sigma)) == pytest.approx(noise, rel=1e-8, abs=1e-8)
    assert float(model.score(at, alpha, sigma)) == pytest.approx(-noise / sigma, rel=1e-8, abs=1e-8 / sigma)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (1.0, 0.3), (1.0, 20.0), (0.3, 0.7)])
def test_mixture_in_two_dimensions_is_what_a_dense_grid_finds(alpha: float, sigma: float) -> None:
    """Each coordinate has its own deviation. The trapezium rule is exact to rounding on smooth, decaying functions."""
    means, stds = np.array([[-1.0, 0.4], [0.9, -0.2]]), np.array([[0.4, 0.9], [0.6, 0.3]])
    weights = np.array([0.35, 0.65])
    model = GaussianMixture(torch.tensor(means), torch.tensor(stds), torch.tensor(weights))
    side = np.linspace(
        -9, 9, 721
    )  # a spacing of 0.025, a tenth of the narrowest bell (0.3 as a product with the noise's)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1)
    z = (grid[..., None, :] - means) / stds
    prior = (weights * np.exp(-(z**2).sum(-1) / 2) / (2 * np.pi * stds.prod(-1))).sum(-1)
    for x in ([0.0, 0.0], [-1.2, 0.7], [1.5, -1.0]):
        noise = (x - alpha * grid) / sigma
        joint = prior * np.exp(-(noise**2).sum(-1) / 2) / (2 * np.pi * sigma**2)
        mass = joint.sum() * (side[1] - side[0]) ** 2
        mean = (joint[..., None] * grid).sum((0, 1)) / joint.sum()
        eps = (joint[..., None] * noise).sum((0, 1)) / joint.sum()
        at = torch.tensor([x], dtype=torch.float64)
        assert float(model.log_prob(at, alpha, sigma)) == pytest.approx(math.log(mass), abs=1e-9)
        assert_close(model(at, alpha, sigma)[0].numpy(), mean, rtol=1e-8, atol=1e-9)
        assert_close(model.score(at, alpha, sigma)[0].numpy(), -eps / sigma, rtol=1e-8, atol=1e-9)


@shapes
@scales
def test_mixture_log_prob_is_that_of_torch_distributions(alpha: float, sigma: float, shape: tuple[int, ...]) -> None:
    model = mixture(shape)
    x = points(model, alpha, sigma)
    assert_close(model.log_prob(x, alpha, sigma), marginal(model, alpha, sigma).log_prob(x), rtol=1e-11, atol=1e-11)
    assert_close(model.log_prob(x), marginal(model, 1.0, 0.0).log_prob(x), rtol=1e-11, atol=1e-11)


@shapes
@scales
def test_mixture_score_is_the_gradient_of_its_log_prob(alpha: float, sigma: float, shape: tuple[int, ...]) -> None:
    model = mixture(shape)
    x = points(model, alpha, sigma).requires_grad_()
    (gradient,) = torch.autograd.grad(marginal(model, alpha, sigma).log_prob(x).sum(), x)
    score = model.score(x.detach(), alpha, sigma)
    assert_close(score, gradient, rtol=1e-9, atol=1e-11)
    (own,) = torch.autograd.grad(model.log_prob(x, alpha, sigma).sum(), x)
    assert_close(own, gradient, rtol=1e-9, atol=1e-11)


@shapes
@scales
def test_mixture_obeys_tweedie(alpha: float, sigma: float, shape: tuple[int, ...]) -> None:
    """alpha E[x0 | x] + sigma E[eps | x] = x, and E[eps | x] = -sigma score."""
    model = mixture(shape)
    x = points(model, alpha, sigma)
    noise = model.noise(x, alpha, sigma)
    # Rounding of the largest term, |x| of up to 100.
    assert_close(alpha * model(x, alpha, sigma) + sigma * noise, x, rtol=1e-11, atol=1e-12)
    assert_close(noise, -sigma * model.score(x, alpha, sigma), rtol=1e-12, atol=0)


@shapes
def test_gaussian_is_the_textbook_posterior(shape: tuple[int, ...]) -> None:
    """Precisions add: E[x0 | x] = (m / s^2 + alpha x / sigma^2) / (1 / s^2 + alpha^2 / sigma^2)."""
    model, alpha, sigma = gaussian(shape), 0.7, 0.4
    mean, variance = model.means[0], model.stds[0] ** 2
    x = points(model, alpha, sigma)
    posterior = (mean / variance + alpha * x / sigma**2) / (1 / variance + alpha**2 / sigma**2)
    assert_close(model(x, alpha, sigma), posterior, rtol=1e-12, atol=1e-13)
    each = Normal(alpha * mean, torch.sqrt(alpha**2 * variance + sigma**2))
    assert_close(model.log_prob(x, alpha, sigma), each.log_prob(x).flatten(1).sum(1), rtol=1e-12, atol=1e-12)


def test_gaussian_takes_one_standard_deviation_for_all() -> None:
    mean = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    one, each = Gaussian(mean, torch.tensor(0.5, dtype=torch.float64)), Gaussian(mean, torch.full_like(mean, 0.5))
    x = torch.ones(4, 2, 3, dtype=torch.float64)
    assert_close(one(x, 0.8, 0.6), each(x, 0.8, 0.6), rtol=0, atol=0)
    assert_close(one.log_prob(x), each.log_prob(x), rtol=0, atol=0)


def test_a_standard_deviation_a_mode_is_one_for_all_its_coordinates() -> None:
    means, stds, weights = (
        mixture((2, 3)).means,
        torch.tensor([0.5, 0.7], dtype=torch.float64),
        torch.tensor([3.0, 7.0]),
    )
    short = GaussianMixture(means, stds, weights)
    full = GaussianMixture(means, stds[:, None, None].expand(2, 2, 3), weights.double() / 10)
    x = points(full, 0.8, 0.6)
    # The weights (3, 7) are normalised, in float32 here: 6e-8 of a log.
    assert_close(short.log_prob(x, 0.8, 0.6), full.log_prob(x, 0.8, 0.6), rtol=0, atol=1e-6)
    assert_close(short.weights, torch.tensor([0.3, 0.7]))


@shapes
def test_scales_come_as_floats_scalars_and_one_a_sample(shape: tuple[int, ...]) -> None:
    model, data = mixture(shape), Empirical(batch(mixture(shape), 7))
    x = points(model, 0.8, 0.6, n=2)
    alphas = torch.tensor([0.8, 1.0, 0.3, 0.1], dtype=torch.float64)
    sigmas = torch.tensor([0.6, 2.0, 0.7, 1.0], dtype=torch.float64)
    for function in (model, model.score, model.noise, model.log_prob, data, data.log_prob):
        together = function(x, alphas, sigmas)
        mixed = function(x, 0.8, sigmas)
        for i in range(4):
            # Sums over a batch of one and of four may run in another order: a few roundings, of logs of size 1000.
            one = function(x[i : i + 1], float(alphas[i]), float(sigmas[i]))[0]
            assert_close(together[i], one, rtol=1e-12, atol=1e-11)
            assert_close(function(x, alphas[i], sigmas[i])[i], one, rtol=1e-12, atol=1e-11)
            assert_close(mixed[i], function(x, 0.8, sigmas[i])[i], rtol=1e-12, atol=1e-11)


@shapes
@scales
def test_float32_agrees_with_float64(alpha: float, sigma: float, shape: tuple[int, ...]) -> None:
    model, dims = mixture(shape), math.prod(shape)
    x = points(model, alpha, sigma).float()
    exact = x.double()
    assert model(x, alpha, sigma).dtype == model.log_prob(x, alpha, sigma).dtype == torch.float32
    # Residuals lose 6e-8 of |x| (a few sigma or a unit); the responsibilities add up `dims` squares, each rounded,
    # and are no worse than that sum's absolute error; 1e-5 leaves a factor of ten at 192 dimensions.
    size = 1 + float(exact.abs().max())
    assert_close(model(x, alpha, sigma).double(), model(exact, alpha, sigma), rtol=0, atol=1e-5 * size)
    assert_close(model.noise(x, alpha, sigma).double(), model.noise(exact, alpha, sigma), rtol=0, atol=1e-5 * size)
    assert_close(
        model.log_prob(x, alpha, sigma).double(), model.log_prob(exact, alpha, sigma), rtol=1e-6, atol=1e-6 * dims
    )


@shapes
def test_mixture_without_noise_returns_the_point_itself(shape: tuple[int, ...]) -> None:
    model = mixture(shape)
    x = batch(model, 4)
    assert_close(model(0.5 * x, 0.5, 0.0), x, rtol=1e-12, atol=1e-13)


def test_far_from_the_data_the_nearest_mode_decides_and_nothing_overflows() -> None:
    model = mixture((2,), torch.float32)
    x = 1e3 * (model.means[0] - model.means[1])[None]
    score = model.score(x, 1.0, 0.1)
    # There the wider mode (0.7) has it all: score = -(x - m) / (s^2 + sigma^2); float32 at 1e3.
    assert_close(score, -(x - model.means[1]) / (0.49 + 0.01), rtol=1e-5, atol=1e-5)
    assert bool(torch.isfinite(model.log_prob(1e4 * x, 1.0, 0.1)).all())


@shapes
def test_samples_have_the_moments_of_the_mixture(shape: tuple[int, ...]) -> None:
    model, n = mixture(shape), 20000
    x = model.sample((n,), generator=torch.Generator().manual_seed(0))
    assert x.shape == (n, *shape)
    assert x.dtype == torch.float64
    weights = model.weights.reshape(-1, *(1,) * len(shape))
    mean = (weights * model.means).sum(0)
    variance = (weights * (model.stds**2 + model.means**2)).sum(0) - mean**2
    # 5.5 standard errors a coordinate, 192 at most: false alarms below 1e-5. For the variance, normals' own
    # sqrt(2 / n) is a little more than a two-mode mixture's.
    assert bool(((x.mean(0) - mean).abs() < 5.5 * (variance / n).sqrt()).all())
    assert bool(((x.var(0) / variance - 1).abs() < 5.5 * math.sqrt(2 / n)).all())
    # The projection on the modes' line tells the weights: the modes are two apart, so the mean says w1 - w2 = -0.4.
    along = (x * model.means[0]).flatten(1).sum(1)
    assert abs(float(along.mean()) + 0.4) < 5 * float(along.std()) / math.sqrt(n)  # false alarm 6e-7


def test_samples_repeat_with_their_generator() -> None:
    model = mixture((3, 2))
    once, again = (model.sample(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert_close(once, again, rtol=0, atol=0)
    assert model.sample((2, 3)).shape == (6, 3, 2)
    assert model.sample(4).shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("stds", "weights"),
    [((3,), (2,)), ((2,), (3,)), ((2, 3), (2,)), ((2, 1, 1), (2,)), ((), (2,)), ((2,), (2, 1)), ((2,), ())],
)
def test_mixture_refuses_shapes_that_do_not_match(stds: tuple[int, ...], weights: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected stds \(2,\) or \(2, 3, 4\) and weights \(2,\)"):
        GaussianMixture(torch.zeros(2, 3, 4), torch.ones(stds), torch.ones(weights))


@pytest.mark.parametrize("x", [(3, 2), (1, 2), (4, 2), (5, 1, 2), (5, 3, 1), (5, 3, 3)], ids=str)
def test_a_point_of_another_shape_is_refused_not_broadcast(x: tuple[int, ...]) -> None:
    model = GaussianMixture(torch.zeros(3, 3, 2), torch.ones(3), torch.ones(3))
    with pytest.raises((ValueError, RuntimeError)):
        model(torch.zeros(x), 1.0, 1.0)
    with pytest.raises((ValueError, RuntimeError)):
        model.log_prob(torch.zeros(x), 1.0, 1.0)


def test_a_scale_for_each_of_another_number_of_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a scale of shape"):
        mixture((2,))(torch.zeros(4, 2), torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="expected a scale of shape"):
        Empirical(torch.zeros(5, 2))(torch.zeros(4, 2), torch.ones(4), torch.ones(3))


# Finite data sets


def directly(data: np.ndarray, x: np.ndarray, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """D and log p of a data set, from all the differences."""
    data, x = data.reshape(len(data), -1), x.reshape(len(x), -1)
    logits = -((x[:, None] - alpha * data[None]) ** 2).sum(2) / (2 * sigma**2)
    log_prob = logsumexp(logits, axis=1) - math.log(len(data)) - x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return softmax(logits, axis=1) @ data, log_prob


@shapes
@scales
def test_empirical_is_a_softmax_over_its_data(alpha: float, sigma: float, shape: tuple[int, ...]) -> None:
    data = batch(mixture(shape), 23, seed=2)
    x = points(mixture(shape), alpha, sigma)
    denoised, log_prob = directly(data.numpy(), x.numpy(), alpha, sigma)
    model = Empirical(data)
    # |x - a x_i|^2 / 2 sigma^2 is up to 1e6 here and good to 1e-16 of itself: 1e-9 of a responsibility.
    assert_close(model(x, alpha, sigma).flatten(1).numpy(), denoised, rtol=1e-8, atol=1e-9)
    assert_close(model.log_prob(x, alpha, sigma).numpy(), log_prob, rtol=1e-11, atol=1e-9)


@shapes
@scales
def test_empirical_is_the_limit_of_narrow_modes(alpha: float, sigma: float, shape: tuple[int, ...]) -> None:
    data = batch(mixture(shape), 11, seed=2)
    narrow = GaussianMixture(data, torch.full((11,), 1e-9, dtype=torch.float64), torch.ones(11, dtype=torch.float64))
    x = points(mixture(shape), alpha, sigma)
    assert_close(Empirical(data)(x, alpha, sigma), narrow(x, alpha, sigma), rtol=1e-8, atol=1e-8)
    assert_close(Empirical(data).log_prob(x, alpha, sigma), narrow.log_prob(x, alpha, sigma), rtol=1e-9, atol=1e-8)


def test_empirical_remembers_at_little_noise_and_averages_at_much() -> None:
    data = batch(mixture((3, 8, 8)), 20, seed=2)
    model = Empirical(data)
    assert_close(model(data + 1e-3, 1.0, 1e-2), data, rtol=0, atol=1e-12)  # others are 1e5 nats away
    assert_close(model(data, 1e-6, 1.0), data.mean(0).expand_as(data), rtol=0, atol=1e-4)  # logits within 1e-4


@pytest.mark.parametrize("sigma", [1e-3, 1e-2, 0.1, 1.0])
def test_empirical_keeps_its_digits_in_float32(sigma: float) -> None:
    """x is 192 numbers of size one: the differences to the data, of size sigma, may be rounded, not |x|^2 itself."""
    data = batch(mixture((3, 8, 8)), 20, seed=2).float()
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    x = data + sigma * noise
    denoised, log_prob = directly(data.double().numpy(), x.double().numpy(), 1.0, sigma)
    # 1e-4 nats a dimension is what a likelihood is checked to.
    assert_close(Empirical(data).log_prob(x, 1.0, sigma).double().numpy(), log_prob, rtol=0, atol=1e-4 * 192)
    assert_close(Empirical(data)(x, 1.0, sigma).flatten(1).double().numpy(), denoised, rtol=0, atol=1e-5)


def test_empirical_tells_close_neighbours_apart_in_float32() -> None:
    """Ten points 2e-3 apart at noise 1e-2: many share the posterior, and D is good to a hundredth of their spread."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(1, 3, 8, 8, generator=generator)
    data = base + 2e-3 * torch.randn(10, 3, 8, 8, generator=generator)
    x = data + 1e-2 * torch.randn(data.shape, generator=generator)
    denoised, _ = directly(data.double().numpy(), x.double().numpy(), 1.0, 1e-2)
    assert_close(Empirical(data)(x, 1.0, 1e-2).flatten(1).double().numpy(), denoised, rtol=0, atol=2e-5)


def test_the_exact_models_follow_every_path_they_are_given() -> None:
    """Their marginal at t is that of x_t: scores from the path and from the model are one."""
    model = mixture((2, 5, 7))
    for sde in PATHS.values():
        t = torch.tensor([0.2, 0.6], dtype=torch.float64) * sde.t_max
        x = batch(model, 2)
        assert_close(sde.score(model, x, t), model.score(x, *sde.scales(t)), rtol=1e-12, atol=0)
