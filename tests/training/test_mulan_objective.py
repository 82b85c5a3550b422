"""Training on the bound of a path with a noise level for each dimension and a latent code."""

import math

import pytest
import torch
from correlated import Correlated, diffusion_loss, nodes
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.likelihood import GaussianDecoder, elbo
from scorefield.models import MLP, Denoiser
from scorefield.models.networks.code_encoder import CodeEncoder
from scorefield.models.precondition import v
from scorefield.sde_lib import FrozenVP, MultivariateVP
from scorefield.solvers import PerSampleNoise
from scorefield.training import Model, TrainingState, run
from scorefield.training.objectives.elbo import elbo_loss
from scorefield.training.objectives.mulan import PARTS, mulan_loss, objective
from scorefield.training.times import log_normal

COVARIANCE = torch.tensor([[1.0, 0.57], [0.57, 0.4]]).double()


def family(encoder: nn.Module | None = None) -> MultivariateVP:
    """Polynomials of two dimensions that differ."""
    torch.manual_seed(0)
    sde = MultivariateVP((2,), size=4, active=2, width=8, encoder=encoder)
    nn.init.normal_(sde.polynomials[-1].weight)
    return sde.double()


def data(count: int) -> Tensor:
    normal = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return normal @ torch.linalg.cholesky(COVARIANCE).T


def test_a_draws_mean_is_the_bound_of_the_likelihood_and_so_is_each_part() -> None:
    model, sde, x0, draws = Correlated(COVARIANCE, mean_only=True), family(), data(4000), []
    g = torch.Generator().manual_seed(1)
    normals = [torch.randn(4000, 2, generator=g, dtype=torch.float64) for _ in range(2)]
    uniforms = [torch.rand(4000, *shape, generator=g, dtype=torch.float64) for shape in ((), (4,))]
    with torch.no_grad():
        loss, numbers = mulan_loss(model, sde, x0, uniforms[0], *normals, uniforms[1], decoder=GaussianDecoder())
    noise = PerSampleNoise(2, range(4000))
    bound = elbo(model, sde, x0, decoder=GaussianDecoder(), draws=8, decodings=4, noise=noise, uniform=noise.uniform)
    for name in PARTS:
        difference = numbers[name] + bound.parts[name] / 2
        error = float(difference.std()) / 4000**0.5
        assert abs(float(difference.mean())) <= 4 * error + 1e-12  # a false alarm in 16,000
        draws.append(numbers[name])
    assert_close(loss, torch.stack(draws).sum(0))


def test_with_one_straight_line_for_all_it_is_the_loss_of_variational_diffusion() -> None:
    sde = MultivariateVP((2,), size=4, active=2, width=8).double()
    for weight in sde.encoder.parameters():
        nn.init.zeros_(weight)
    x0, g = data(50), torch.Generator().manual_seed(1)
    normals = [torch.randn(50, 2, generator=g, dtype=torch.float64) for _ in range(2)]
    t, model = torch.rand(50, generator=g, dtype=torch.float64), Correlated(COVARIANCE)
    settings = {"decoder": GaussianDecoder(), "importance": torch.ones(50).double()}
    ours, numbers = mulan_loss(model, sde, x0, t, *normals, torch.rand(50, 4), **settings)
    theirs, parts = elbo_loss(model.one_level, FrozenVP("linear"), x0, t, *normals, **settings)
    assert_close(ours.detach(), theirs, rtol=1e-10, atol=1e-10)
    assert_close(numbers["code"].detach(), torch.zeros(50).double(), rtol=0, atol=1e-15)
    for name in parts:
        assert_close(numbers[name].detach(), parts[name], rtol=1e-10, atol=1e-10)


def test_the_paths_gradient_is_that_of_the_line_integral() -> None:
    # With a linear denoiser the errors are quadratic, and sigma points have the exact mean over x0 and eps.
    model, sde = Correlated(COVARIANCE, mean_only=True), family()
    code = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).double()
    times, weights = nodes(40)
    points = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()  # mean 0, covariance 1 over the eight
    points, t = points.repeat(len(times), 1), times.repeat_interleave(8)
    importance = (len(times) * weights).repeat_interleave(8)
    x0, eps = points[:, :2] @ torch.linalg.cholesky(COVARIANCE).T, points[:, 2:]
    sde.encoder = _Says(torch.where(code > 0, 800.0, 0.0))
    _, numbers = mulan_loss(
        model, sde, x0, t, eps, eps, torch.rand(len(x0), 4), decoder=GaussianDecoder(), importance=importance
    )
    mean = 2 * numbers["diffusion"].mean()
    bias = sde.polynomials[-1].bias
    (gradient,) = torch.autograd.grad(mean, bias)
    with torch.no_grad():
        assert_close(float(mean.detach()), diffusion_loss(model, sde.given(code)), rtol=1e-6, atol=0)
        for i in range(len(bias)):
            values = []
            for h in (1e-4, -1e-4):
                bias[i] += h
                values.append(diffusion_loss(model, sde.given(code)))
                bias[i] -= h
            assert float(gradient[i]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-3, abs=1e-4)
    assert float(gradient.abs().max()) > 0.01


class _Says(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_training_lowers_the_bound_by_network_path_and_encoder() -> None:
    torch.manual_seed(0)
    x0 = data(128).float()
    sde = MultivariateVP((2,), high=8.0, size=4, active=2, width=8, encoder=CodeEncoder((2,), 4, 8, 1))
    model = Model(Denoiser(MLP((2,), 16, 2, code_size=4), v), sde)
    state = TrainingState(model, torch.optim.Adam(model.parameters(), lr=1e-2))

    def bound() -> float:
        noise = PerSampleNoise(0, range(128))
        settings = {"decoder": GaussianDecoder(), "noise": noise, "uniform": noise.uniform}
        return float(elbo(model, sde, x0, draws=16, **settings).log_prob.mean())

    before, weights = bound(), {name: weight.detach().clone() for name, weight in model.named_parameters()}
    bounds = [objective(sde, state.optimizer, decoder=GaussianDecoder())]
    steps = [step for (step,) in run(state, bounds, [x0], images=128 * 30, clip=None)]
    assert not any(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert bound() > before + 0.3  # with the same random numbers
    assert all(math.isfinite(float(step.numbers[name].mean())) for step in steps for name in PARTS)


def test_other_times_are_refused() -> None:
    with pytest.raises(ValueError, match="use stratified, log_snr"):
        objective(family(), torch.optim.Adam([torch.zeros(1)]), decoder=GaussianDecoder(), times=log_normal())


@pytest.mark.parametrize("shape", [(5,), (2, 5, 7), (3, 8, 8), (2, 3)])
def test_the_encoder_takes_any_shape_and_starts_where_all_codes_are_alike(shape: tuple[int, ...]) -> None:
    encoder = CodeEncoder(shape, size=6, width=8, blocks=2)
    assert_close(encoder(torch.randn(3, *shape)), torch.zeros(3, 6))
    nn.init.normal_(encoder.head.weight)
    assert encoder(torch.randn(3, *shape)).std() > 0
