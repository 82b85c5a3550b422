"""Training a dequantiser against the exact probabilities of a mixture's cells."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from scorefield.models.analytic import GaussianMixture
from scorefield.models.networks.dequantiser import Dequantiser
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.quantise import cell_centres
from scorefield.training import Model, TrainingState
from scorefield.training.objectives.dequantiser import dequantiser_gain
from scorefield.training.objectives.dequantiser import train_dequantiser as steps_of


def random(shape: tuple[int, ...], spread: float = 1.0, **settings: int) -> Dequantiser:
    """One whose weights are all at random, in float64."""
    module, generator = Dequantiser(shape[0], width=8, **settings).double(), Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.copy_(spread * draw / math.sqrt(weight[0].numel() if weight.ndim > 1 else 4))
    return module.requires_grad_(False)


LEVELS, SHAPE = 4, (1, 3, 3)


def mixture() -> GaussianMixture:
    """Two faint images, narrower than the cells, whose pixels are independent within each."""
    pattern = torch.linspace(-0.7, 0.7, 9, dtype=torch.float64).reshape(SHAPE)
    return GaussianMixture(
        torch.stack([pattern, pattern.flip(-1)]),
        torch.tensor([0.12, 0.2], dtype=torch.float64),
        torch.tensor([0.6, 0.4], dtype=torch.float64),
    )


def log_mass(model: GaussianMixture, k: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Log P(k) of the marginal: sums over the components of products of normal probabilities, (B,)."""
    k = k.unsqueeze(1).double()
    mean, std = alpha * model.means, ((alpha * model.stds) ** 2 + sigma**2).sqrt()
    below, above = (torch.special.ndtr((2 * edge / LEVELS - 1 - mean) / std) for edge in (k, k + 1))
    return (model.weights.log() + (above - below).log().flatten(2).sum(2)).logsumexp(1)


def integers(model: GaussianMixture, n: int, seed: int) -> Tensor:
    x = model.sample(n, Generator().manual_seed(seed))
    return ((x + 1) * LEVELS / 2).floor().clamp(0, LEVELS - 1).long()


def bound(
    place: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], model: GaussianMixture, k: Tensor
) -> tuple[float, float]:
    """What the bound lacks of log P(k), in nats, on average over images and draws, and its standard error."""
    scales = VPSDE().scales(VPSDE().t_min)
    uniform = torch.rand(k.shape, generator=Generator().manual_seed(5))
    u, log_q = place(cell_centres(k, LEVELS), uniform)
    log_p = model.log_prob((2 * (k + u.double()) / LEVELS - 1), *scales) + k[0].numel() * math.log(2 / LEVELS)
    gap = log_mass(model, k, *scales) - (log_p - log_q.double())
    return float(gap.mean()), float(gap.std() / len(gap) ** 0.5)


@pytest.fixture(scope="module")
def fitted() -> Dequantiser:
    """The average of a training on the mixture's own integers."""
    torch.manual_seed(0)
    model, module = mixture(), Dequantiser(1, width=16)
    batches = [integers(model, 128, seed) for seed in range(50)]
    state = TrainingState(Model(dequantiser=module), torch.optim.Adam(module.parameters(), lr=5e-3))
    images = 128 * 200
    steps = list(
        steps_of(module, model, VPSDE(), batches, levels=LEVELS, images=images, state=state,
                 schedule=lambda seen: 1 - seen / images)
    )  # fmt: skip
    assert [step.images for step in steps] == [128 * n for n in range(1, 201)]
    assert float(steps[0].numbers["log_q"].mean()) == 0 < float(steps[-1].numbers["log_q"].mean())
    assert all(math.isfinite(step.grad_norm) and step.grad_norm > 0 for step in steps)
    return state.ema.model.dequantiser


def test_training_closes_most_of_the_bound_and_never_passes_it(fitted: Dequantiser) -> None:
    model = mixture()
    k = integers(model, 5_000, 1000)
    uniform, uniform_error = bound(lambda image, u: (u, torch.zeros(len(u))), model, k)
    gap, error = bound(fitted, model, k)
    assert uniform > 1.0 and uniform_error < 0.1
    assert -4 * error < gap < 0.15 * uniform
    # Each image's own weights exp(log p - log q) average P(k): that q is a density where the bound says it is.
    one = integers(model, 4, 1001).repeat_interleave(4_000, 0)
    draws = torch.rand(one.shape, generator=Generator().manual_seed(6))
    with torch.no_grad():
        u, log_q = fitted(cell_centres(one, LEVELS), draws)
    scales = VPSDE().scales(VPSDE().t_min)
    log_p = model.log_prob((2 * (one + u.double()) / LEVELS - 1), *scales) + 9 * math.log(2 / LEVELS)
    weights = (log_p - log_q.double() - log_mass(model, one, *scales)).exp().reshape(4, -1)
    assert (weights.mean(1) - 1).abs().max() < 5 * float(weights.std(1).max()) / 4_000**0.5


def test_the_gain_is_what_the_density_says(fitted: Dequantiser) -> None:
    model, sde = mixture(), VPSDE()
    k = integers(model, 200, 2)
    uniform = torch.rand(k.shape, generator=Generator().manual_seed(3))
    result = dequantiser_gain(fitted, model, sde, k, uniform, levels=LEVELS, nodes=12)
    u, log_q = fitted(cell_centres(k, LEVELS), uniform)
    after, before = (model.log_prob(2 * (k + v.double()) / LEVELS - 1, *sde.scales(sde.t_min)) for v in (u, uniform))
    assert_close(result, after - before - log_q, rtol=0, atol=2e-3)
    assert result.mean() > 1


def test_the_gradient_without_a_backward_pass_is_that_of_the_bound_itself() -> None:
    model, sde = mixture(), VPSDE()
    k = integers(model, 32, 7)
    module = random(SHAPE, spread=0.5).float().requires_grad_(True)
    before = [weight.detach().clone() for weight in module.parameters()]
    uniform = torch.rand(k.shape, generator=Generator().manual_seed(0))
    u, log_q = module(cell_centres(k, LEVELS), uniform)
    log_p = model.log_prob((k + u) / LEVELS, *sde.scales(sde.t_min))  # cells of [0, 1]
    expected = torch.autograd.grad((log_p - log_q).mean() / 9, list(module.parameters()))

    state = TrainingState(Model(dequantiser=module), torch.optim.SGD(module.parameters(), lr=1.0))
    settings = {"levels": LEVELS, "low": 0.0, "images": 32, "limit": math.inf, "clip": None}
    (step,) = steps_of(module, model, sde, [k], state=state, **settings)
    for old, new, gradient in zip(before, module.parameters(), expected, strict=True):
        assert_close(new - old, gradient, rtol=1e-3, atol=1e-5)
    assert_close(step.grad_norm, torch.stack([g.norm() for g in expected]).norm(), rtol=1e-4, atol=0)
    assert_close(step.numbers["log_q"].mean(), log_q.mean() / 9)


def test_only_the_score_at_a_time_within_the_path_is_needed() -> None:
    calls = []

    def denoiser(x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        assert not x.requires_grad
        calls.append((float(alpha), float(sigma), label.tolist()))
        return 0 * x

    sde, batches = VPSDE(), [{"x0": torch.zeros(2, 1, 2, 2, dtype=torch.int32), "label": torch.tensor([1, 2])}]
    for time in (None, 0.01):
        for _ in steps_of(Dequantiser(1, width=4), denoiser, sde, batches, levels=4, images=4, time=time):
            pass
        alpha, sigma = sde.scales(time or sde.t_min)
        assert calls[-2:] == [(float(alpha), float(sigma), [1, 2])] * 2
    assert len(calls) == 4
    with pytest.raises(ValueError, match="within the path's"):
        next(steps_of(Dequantiser(1), denoiser, sde, batches, levels=4, images=4, time=2.0))
    with pytest.raises(ValueError, match="empty one"):
        next(steps_of(Dequantiser(1), denoiser, sde, [], levels=4, images=4))
