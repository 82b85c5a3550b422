"""The loss in the norms l2 and l1: their formulae, written out for a linear denoiser."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models import Denoiser, precondition
from scorefield.sde_lib import SDE, VPSDE, DiscreteVPSDE, RectifiedSDE
from scorefield.training import Model, TrainingState, dsm_loss, weighting
from scorefield.training.objectives import dsm


class Linear(nn.Module):
    """eps_hat = a x + b t."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.7).double()), nn.Parameter(torch.tensor(0.2).double())

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.a * x + self.b * c_noise.reshape(-1, *[1] * (x.ndim - 1))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(5, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return {"x0": x0, "eps": eps, "times": torch.linspace(0.1, 0.9, 5, dtype=torch.float64)}


PATHS = {"vp": VPSDE(), "discrete": DiscreteVPSDE("scaled_linear", 1000, 0.0015, 0.0195), "flow": RectifiedSDE()}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_l1_is_the_mean_of_the_absolute_error_in_the_noise(path: SDE, batch: dict[str, Tensor]) -> None:
    net = Linear().requires_grad_(False)
    denoiser = Denoiser(net, precondition.eps)
    losses, numbers = dsm.batch_loss(denoiser, path, batch, weighting.simple, norm="l1")
    for i, t in enumerate(batch["times"]):  # eps_hat in plain words, a sample at a time
        alpha, sigma = path.scales(t)
        x = alpha * batch["x0"][i] + sigma * batch["eps"][i]
        c_in, c_skip, c_out, c_noise = precondition.eps(alpha, sigma)
        d = c_skip * x + c_out * net(c_in * x[None], c_noise[None])[0]
        error = (x - alpha * d) / sigma - batch["eps"][i]
        assert_close(losses[i], error.abs().mean(), rtol=1e-9, atol=1e-12)
        assert_close(numbers["eps_error"][i], error.square().mean(), rtol=1e-9, atol=1e-12)


def test_a_weight_of_the_square_counts_with_its_root(batch: dict[str, Tensor]) -> None:
    denoiser, path, t = Denoiser(Linear(), precondition.x0), VPSDE(), batch["times"]
    weight = weighting.edm(0.3)
    alpha, sigma = (scale[:, None, None] for scale in path.scales(t))
    error = denoiser(alpha * batch["x0"] + sigma * batch["eps"], *path.scales(t)) - batch["x0"]
    expected = {
        "l1": (alpha**2 / sigma**2 + 1 / 0.09).sqrt()[:, 0, 0] * error.abs().mean((1, 2)),
        "l2": (alpha**2 / sigma**2 + 1 / 0.09)[:, 0, 0] * error.square().mean((1, 2)),
    }
    for norm, value in expected.items():
        assert_close(dsm_loss(denoiser, path, batch["x0"], t, batch["eps"], weight=weight, norm=norm), value)
    assert_close(dsm_loss(denoiser, path, batch["x0"], t, batch["eps"], weight=weight), expected["l2"])


def test_the_objective_minimises_the_norm_that_it_is_given(batch: dict[str, Tensor]) -> None:
    denoiser = Denoiser(Linear(), precondition.eps)
    state = TrainingState(Model(denoiser, None))
    for norm in dsm.NORMS:
        objective = dsm.objective(VPSDE(), state.optimizer, norm=norm)
        losses, _ = objective.loss(state.model, batch)
        assert_close(losses, dsm_loss(denoiser, VPSDE(), batch["x0"], batch["times"], batch["eps"], norm=norm))


def test_other_norms_and_l1_with_the_second_order_loss_are_refused(batch: dict[str, Tensor]) -> None:
    denoiser = Denoiser(Linear(), precondition.eps)
    with pytest.raises(ValueError, match="expected a norm among l2, l1, got 'huber'"):
        dsm.batch_loss(denoiser, VPSDE(), batch, weighting.simple, norm="huber")
    with pytest.raises(ValueError, match="expected the norm l2 with the second-order loss"):
        dsm.batch_loss(denoiser, VPSDE(), batch, weighting.simple, 0.1, "l1")
