"""The second-order loss: its identity on exact denoisers, its gradient, its weights, and what fine-tuning does."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import PATHS
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from scorefield.commands.command_line import run as command
from scorefield.likelihood import Exact
from scorefield.likelihood import elbo as bound_of
from scorefield.likelihood.decoders import LevelDecoder
from scorefield.models import MLP, Denoiser, Empirical, UNet
from scorefield.models.precondition import eps as predicts_eps
from scorefield.models.precondition import v as predicts_v
from scorefield.sde_lib import SDE, VPSDE, LearnedVP, RectifiedSDE
from scorefield.sde_lib.denoiser import predict_noise
from scorefield.sde_lib.quantise import cell_centres
from scorefield.solvers import PerSampleNoise
from scorefield.training import EMA, Batches, Model, ToModelRange, TrainingState, run, times, weighting
from scorefield.training.data import digits
from scorefield.training.engine import Objective
from scorefield.training.objectives import dsm, elbo
from scorefield.training.objectives.second_order import second_order_loss

FIVE = [name for name in PATHS if name in ("vp", "ve", "rectified", "subvp", "cosine")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


class Posterior:
    """Every pair of a noisy point and a point of the data that it may come from, with the exact denoiser."""

    def __init__(self, sde: SDE) -> None:
        self.data = normal(5, 3, seed=1)
        self.denoiser = Empirical(self.data)
        t = sde.time(torch.tensor([2.0, 0.5, -1.0, -3.0], dtype=torch.float64))
        self.alpha, self.sigma = sde.scales(t)
        a, s = self.alpha[:, None], self.sigma[:, None]
        self.x = a * self.data[:4] + s * normal(4, 3, seed=2)
        self.eps = (self.x[:, None] - a[..., None] * self.data) / s[..., None]  # (points, data, D)
        self.p = (-self.eps.square().sum(2) / 2).softmax(1)
        self.error = self.eps - (self.p[..., None] * self.eps).sum(1, keepdim=True)


@pytest.mark.parametrize("path", FIVE)
def test_the_identity_holds_on_every_path(path: str) -> None:
    """Sums over the posterior of five points are exact; both sides are of the size of D = 3."""
    it = Posterior(PATHS[path])
    eps_hat, divergence = Exact()(
        lambda x: predict_noise(it.denoiser, x, it.alpha, it.sigma), it.x, Exact().directions(it.x, torch.zeros_like)
    )
    expected = 3 - (it.p * it.error.square().sum(2)).sum(1)
    assert_close(it.sigma * divergence[:, 0], expected, rtol=0, atol=1e-12)
    assert_close(eps_hat, (it.p[..., None] * it.eps).sum(1), rtol=0, atol=1e-12)
    assert float((expected - 3).abs().min()) > 1e-3  # none of the points is certain of its origin


@pytest.mark.parametrize("path", FIVE)
def test_the_mean_of_the_loss_of_an_exact_denoiser_is_its_two_variances(path: str) -> None:
    """Over all 8 probes of signs and over the posterior: Var |eps_hat - eps|^2 + 2 sigma^2 sum_{i != j} J_ij^2."""
    it = Posterior(PATHS[path])
    jacobian = noise_jacobian(it.denoiser, it.x, it.alpha, it.sigma)
    off = jacobian - torch.diag_embed(jacobian.diagonal(dim1=1, dim2=2))
    squared = it.error.square().sum(2)
    variance = (it.p * squared.square()).sum(1) - (it.p * squared).sum(1).square()
    expected = (variance + 2 * it.sigma.square() * off.square().sum((1, 2))) / 3
    found = torch.zeros(4, dtype=torch.float64)
    for probe in itertools.product((-1.0, 1.0), repeat=3):
        for i in range(5):
            v = torch.tensor(probe, dtype=torch.float64).expand(4, 3)
            loss = second_order_loss(it.denoiser, it.x, it.alpha, it.sigma, it.eps[:, i], v)
            found += it.p[:, i] * loss / 8
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


# The gradient


def small(parameterisation: Any = predicts_eps, seed: int = 0) -> Denoiser:
    """A small network in float64 whose weights are all at random."""
    torch.manual_seed(seed)
    denoiser = Denoiser(MLP((3,), width=8, blocks=1), parameterisation).double()
    for weight in denoiser.parameters():
        nn.init.normal_(weight, std=0.5)
    return denoiser


@pytest.mark.parametrize("parameterisation", [predicts_eps, predicts_v])
def test_the_gradient_is_that_of_finite_differences(parameterisation: Any) -> None:
    """Of the loss with the whole Jacobian and the error kept; h = 1e-5 errs by h^2 and by 1e-16 / h: 1e-10."""
    denoiser, sde = small(parameterisation), RectifiedSDE()
    x0, eps, probe, t = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2), torch.linspace(0.1, 0.9, 4).double()
    (alpha, sigma), x, v = sde.scales(t), sde.perturb(x0, t, eps), probe.sign()
    error = (denoiser.noise(x, alpha, sigma) - eps).square().sum(1).detach()

    def by_hand() -> Tensor:
        jacobian = noise_jacobian(denoiser, x, alpha, sigma)
        return (sigma * torch.einsum("bi,bij,bj->b", v, jacobian, v) - 3 + error).square() / 3

    loss = second_order_loss(denoiser, x, alpha, sigma, eps, probe)
    assert_close(loss, by_hand(), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert_close(second_order_loss(denoiser, x, alpha, sigma, eps, probe), by_hand(), rtol=1e-12, atol=1e-12)
    weights = list(denoiser.parameters())
    gradients = torch.autograd.grad(loss.sum(), weights, allow_unused=True)  # the last bias only shifts eps_hat
    assert sum(gradient is None for gradient in gradients) == 1
    for weight, gradient in zip(weights, gradients, strict=True):
        direction, values = torch.randn_like(weight), []
        for step in (1e-5, -2e-5):
            weight.data += step * direction
            values.append(float(by_hand().sum()))
        weight.data += 1e-5 * direction
        found = 0.0 if gradient is None else float((gradient * direction).sum())
        assert found == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


def noise_jacobian(denoiser: Any, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """d eps_hat / dx of each sample, (B, D, D)."""
    every = torch.autograd.functional.jacobian(lambda x: predict_noise(denoiser, x, alpha, sigma).sum(0), x)
    return every.transpose(0, 1)  # samples do not see each other


# As a part of the losses


def drawn(objective: Objective, model: nn.Module, x0: Tensor) -> dict[str, Tensor]:
    batch = {"x0": x0}
    return {**batch, **objective.draw(model, batch, Generator().manual_seed(0))}


def without_probe(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "probe"}


def test_score_matching_weighs_it_as_the_error_in_the_noise() -> None:
    sde, model = VPSDE(), Model(small())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"weight": weighting.min_snr(5.0), "times": times.Measured(bins=4)}
    settings["times"].see(sde, torch.tensor([8.0, 3.0, -2.0, -8.0]), torch.tensor([0.1, 0.2, 0.6, 0.9]))
    both = dsm.objective(sde, optimizer, second_order=0.3, **settings)
    batch = drawn(both, model, normal(4, 3))
    loss, numbers = both.loss(model, batch)
    without, plain = dsm.objective(sde, optimizer, **settings).loss(model, without_probe(batch))
    alpha, sigma = sde.scales(batch["times"])
    x = sde.perturb(batch["x0"], batch["times"], batch["eps"])
    extra = second_order_loss(model.denoiser, x, alpha, sigma, batch["eps"], batch["probe"]).detach()
    assert_close(numbers["second_order"], extra)
    assert_close(numbers["eps_error"], plain["eps_error"])
    assert_close(loss, without * (1 + 0.3 * extra / plain["eps_error"]))
    assert batch["importance"].std() > 0.1


@pytest.mark.parametrize("steps", [None, 10])
def test_the_bound_weighs_it_as_its_diffusion_part_and_leaves_the_path_alone(steps: int | None) -> None:
    sde = LearnedVP("monotone", low=-5, high=5, size=4)
    model = Model(small(), sde)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings: dict[str, Any] = {"decoder": LevelDecoder(4), "times": times.stratified, "steps": steps}
    both, plain = (
        elbo.objective(sde, optimizer, second_order=0.3, **settings),
        elbo.objective(sde, optimizer, **settings),
    )
    batch = drawn(both, model, 2 * (torch.arange(12, dtype=torch.float64).reshape(4, 3) % 4 + 0.5) / 4 - 1)
    results, gradients = [], []
    for objective, given in ((both, batch), (plain, without_probe(batch))):
        loss, numbers = objective.loss(model, given)
        results.append((loss.detach(), numbers))
        gradients.append(torch.autograd.grad(loss.mean(), list(model.parameters()), materialize_grads=True))
    (loss, numbers), (without, parts) = results
    assert_close(loss - without, 0.3 * parts["diffusion"].detach() * numbers["second_order"] / parts["eps_error"])
    for name, value in parts.items():
        assert_close(numbers[name], value)
    moved = [float((one - other).abs().max()) for one, other in zip(*gradients, strict=True)]
    path = len(list(sde.parameters()))
    assert max(moved[:-path]) > 1e-3
    assert moved[-path:] == [0.0] * path


def test_a_batch_in_parts_is_the_batch() -> None:
    outcomes = []
    for accumulate in (1, 2):
        state = TrainingState(
            Model(small()),
        )
        objective = dsm.objective(VPSDE(), state.optimizer, second_order=0.1)
        batches = [normal(8, 3, seed=i) for i in range(3)]
        *_, (last,) = run(state, [objective], batches, images=24, accumulate=accumulate)
        outcomes.append(
            (torch.cat([p.detach().flatten() for p in state.model.parameters()]), last.numbers["second_order"])
        )
    for one, other in zip(*outcomes, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10)


# From the command line


def test_a_run_is_fine_tuned_by_a_flag(tmp_path: Path) -> None:
    flags = [
        "--config.net={'name': 'mlp', 'width': 8, 'blocks': 1}", "--config.training.batch=16",
        "--config.training.images=64", "--config.training.log_every=2", "--config.training.sample_every=0",
    ]  # fmt: skip
    train = ["scorefield", "--mode=train", "--config=configs/digits.py:vp", "--device=cpu", *flags]
    assert command([*train, f"--workdir={tmp_path / 'first'}"]) == 0
    more = [f"--fork_from={tmp_path / 'first'}", "--config.training.second_order=0.1"]
    assert command([*train, f"--workdir={tmp_path / 'second'}", *more]) == 0
    rows = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [32, 64]
    for row in rows:
        errors = [n * e for n, e in zip(row["levels"]["count"], row["levels"]["eps_error"], strict=True) if n]
        assert row["second_order"] > 0
        assert row["loss"] == pytest.approx(sum(errors) / 32 + 0.1 * row["second_order"], rel=1e-5)  # of float32


# Fine-tuning

LINE = LearnedVP("linear", low=-5.0, high=7.5).frozen()


def trained(denoiser: nn.Module, steps: int, rate: float, amount: float = 0.0) -> nn.Module:
    """The average of a training on the bound of the digits; its rate falls to zero."""
    model, images = Model(copy.deepcopy(denoiser).requires_grad_(True).train(), LINE), 64 * steps
    state = TrainingState(model, torch.optim.Adam(model.parameters(), lr=rate), EMA(model, 0.99))
    objective = elbo.objective(
        LINE, state.optimizer, decoder=LevelDecoder(17), times=times.log_snr, second_order=amount
    )  # fmt: skip
    batches = Batches(digits("train"), 64, transform=ToModelRange(17, dequantise=False))
    list(run(state, [objective], batches, images=images, schedule=lambda seen: 1 - seen / images))
    average: nn.Module = state.ema.model.denoiser
    return average.eval()


def second_order_on(denoiser: nn.Module, x0: Tensor) -> Tensor:
    """The loss on 16 draws of noise for each image, at noise levels spread over the path, (16, B)."""
    losses, generator = [], Generator().manual_seed(1)
    for _ in range(16):
        t = (torch.arange(len(x0)).double() + torch.rand(1, generator=generator)) / len(x0)
        order = torch.randperm(len(x0), generator=generator)
        eps, probe = (torch.randn(x0.shape, generator=generator) for _ in range(2))
        with torch.no_grad():
            x = LINE.perturb(x0[order], t, eps)
            losses.append(second_order_loss(denoiser, x, *LINE.scales(t), eps, probe))
    return torch.stack(losses)


@pytest.mark.slow
def test_fine_tuning_lowers_the_residual_and_leaves_the_bound() -> None:
    """Against as many steps without it: the residual of the same draws, by 3 standard errors of the pairs.

    The bound's difference is within the bound's own standard error over the 297 test images.
    """
    torch.manual_seed(0)
    base = trained(Denoiser(UNet(1, width=16, multipliers=(1, 2), blocks=1), predicts_v), 400, 2e-3)
    test = digits("test")
    x0 = cell_centres(torch.stack([torch.as_tensor(test.x[i]) for i in range(len(test))]).long(), 17)
    residuals, bounds = [], []
    for amount in (0.0, 0.1):
        denoiser, noise = trained(base, 100, 3e-4, amount), PerSampleNoise(0, range(len(x0)))
        residuals.append(second_order_on(denoiser, x0))
        bound = bound_of(denoiser, LINE, x0, decoder=LevelDecoder(17), noise=noise, uniform=noise.uniform)
        bounds.append(-bound.log_prob / 64 / math.log(2))
    gained, lost = residuals[0] - residuals[1], bounds[1] - bounds[0]
    assert float(gained.mean()) > 3 * float(gained.std()) / math.sqrt(gained.numel())
    assert abs(float(lost.mean())) < float(bounds[0].std()) / math.sqrt(len(x0))
