"""Solvers that split their batch: conditioning goes along, and hidden data of each sample is refused."""

import pytest
import torch
from oracles import PATHS, gaussian
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import Exact, choose_solver, log_likelihood
from scorefield.sde_lib import VPSDE, expand
from scorefield.solvers import (
    Adaptive,
    AdaptiveSDE,
    AnnealedLangevin,
    Churn,
    DPMSolver,
    PerSampleNoise,
    PredictorCorrector,
    Solver,
    grids,
)

SDE, MODEL = VPSDE(), gaussian((2,))
X, Y = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
TS = grids.log_snr(SDE, 10)


def guided(x: Tensor, alpha: Tensor, sigma: Tensor, *, y: Tensor) -> Tensor:
    """Guided to observations y of x0 by a gradient that sums over them."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = MODEL(x, alpha, sigma)
        (gradient,) = torch.autograd.grad((x0 - y).square().sum(), x)
    return x0.detach() - 0.3 * expand(sigma, x) ** 2 * gradient


def hidden(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return guided(x, alpha, sigma, y=Y)


SPLITTING: dict[str, Solver] = {
    "dopri5": Adaptive(rtol=1e-2, atol=1e-2),
    "dopri8": Adaptive("dopri8", 1e-2, 1e-2),
    "scipy": Adaptive("scipy:RK45", 1e-2, 1e-2),
    "adaptive-sde": AdaptiveSDE(rtol=0.2, atol=0.05),
    "churned": Churn(solver=Adaptive(rtol=1e-2, atol=1e-2)),
    "predictor": PredictorCorrector(Adaptive(rtol=1e-2, atol=1e-2), AnnealedLangevin(snr=0.1)),
}


@pytest.mark.parametrize("solver", SPLITTING.values(), ids=SPLITTING.keys())
def test_hidden_data_of_each_sample_is_refused_where_a_batch_is_split(solver: Solver) -> None:
    assert solver.splits_batch
    with pytest.raises(ValueError, match=r"does not depend on its batch.*cond="):
        solver(hidden, SDE, X, TS)
    whole = solver(guided, SDE, X, TS, cond={"y": Y}, noise=PerSampleNoise(0, range(4)))
    one = solver(guided, SDE, X[2:3], TS, cond={"y": Y[2:3]}, noise=PerSampleNoise(0, [2]))
    assert_close(whole[2:3], one, rtol=0, atol=0 if solver is not SPLITTING["scipy"] else 1e-12)


def test_hidden_data_that_is_cut_by_position_is_refused() -> None:
    y = torch.arange(11, dtype=torch.float64)[:, None] % 10  # the first and the last are alike
    x = torch.randn(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def cut(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x * 0 + y[: len(x)]

    with pytest.raises(ValueError, match="depend on its batch"):
        Adaptive()(cut, SDE, x, TS)


@pytest.mark.parametrize("path", PATHS)
def test_hidden_data_of_two_samples_is_refused_along_every_path(path: str) -> None:
    with pytest.raises(ValueError, match="depend on its batch"):
        Adaptive()(lambda x, a, s: guided(x, a, s, y=Y[:2]), PATHS[path], X[:2], grids.log_snr(PATHS[path], 2))


def test_rounding_that_a_small_alpha_multiplies_is_no_dependence() -> None:
    # A network's answer may differ by 1e-6 from batch to batch. Divided by alpha = 5e-5 in D it is 2e-2.
    sde = PATHS["ddpm-cosine"]

    def network(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        eps = MODEL.noise(x, alpha, sigma) + 1e-6 * len(x)
        return (x - expand(sigma, x) * eps) / expand(alpha, x)

    start = X * float(sde.scales(sde.t_max)[1])
    assert Adaptive(rtol=0.1, atol=0.1)(network, sde, start, grids.log_snr(sde, 2)).shape == X.shape


def test_hidden_data_is_right_where_the_batch_stays_together() -> None:
    for solver in (DPMSolver(), Adaptive(per_sample=False)):
        assert not solver.splits_batch
        assert torch.equal(solver(hidden, SDE, X, TS), solver(guided, SDE, X, TS, cond={"y": Y}))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_difference_at_one_end_or_in_the_middle_is_enough(at: int) -> None:
    sde = PATHS["ve"]
    levels = [float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min)]
    level = [levels[0], 0.0, levels[1]][at]

    def there(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        near = abs(2 * float((alpha / sigma).log().mean()) - level) < 0.1
        return x / 2 + (0.2 * x.abs().amax() * len(x) if near else 0.0)

    with pytest.raises(ValueError, match="depend on its batch"):
        Adaptive()(there, sde, X, grids.log_snr(sde, 2))


def test_an_error_for_one_sample_is_a_dependence_too_and_one_for_all_is_itself() -> None:
    with pytest.raises(ValueError, match="depend on its batch, got an error for a part of the batch"):
        Adaptive()(lambda x, a, s: x / 2 + Y, SDE, X, TS)
    with pytest.raises(ZeroDivisionError):
        Adaptive()(lambda x, a, s: x / 0 if 1 // 0 else x, SDE, X, TS)


def test_likelihoods_refuse_hidden_data_and_take_conditioning() -> None:
    settings = {"divergence": Exact(), "solver": Adaptive(rtol=1e-6, atol=1e-6)}
    with pytest.raises(ValueError, match="depend on its batch"):
        log_likelihood(hidden, SDE, X, **settings)
    for choose in (lambda: log_likelihood(hidden, SDE, X, tolerance=1e-2), lambda: choose_solver(hidden, SDE, X, 1e-2)):
        with pytest.raises(ValueError, match="depend on its batch"):
            choose()
    conditional = lambda x, a, s, *, y: MODEL(x - y, a, s)  # noqa: E731
    whole = log_likelihood(conditional, SDE, X, cond={"y": Y}, **settings).log_prob
    one = log_likelihood(conditional, SDE, X[1:2], cond={"y": Y[1:2]}, **settings).log_prob
    assert torch.equal(whole[1:2], one)
