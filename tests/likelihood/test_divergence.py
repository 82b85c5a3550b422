"""Divergences and what is random in them against closed forms, and gradients of a likelihood against scores."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from oracles import PATHS, batch, mixture
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from scorefield.likelihood import Exact, Hutchinson, HutchPlusPlus, log_likelihood
from scorefield.likelihood.divergence import Divergence
from scorefield.models import MLP, Denoiser, UNet, precondition
from scorefield.models.analytic import GaussianMixture
from scorefield.models.counting import CountCalls
from scorefield.sde_lib import SDE, VPSDE
from scorefield.solvers import AdamsMoulton, Adaptive, Euler, Heun, PerSampleNoise, grids

DIMS = 10
TIGHT = Adaptive(rtol=1e-7, atol=1e-7, per_sample=False)


def seeded(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def random_matrix(seed: int, rows: int = DIMS, columns: int = DIMS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rank: int, seed: int = 0) -> Tensor:
    """Neither symmetric nor of trace zero."""
    left, right = random_matrix(seed, DIMS, rank), random_matrix(seed + 1, DIMS, rank)
    return left @ (right + left).T / 2


def estimates(divergence: Divergence, jacobian: Tensor, samples: int, seed: int = 1) -> Tensor:
    """Of the linear field x -> J x, (samples, E)."""
    x = torch.zeros(samples, len(jacobian), dtype=torch.float64)
    return divergence(lambda y: y @ jacobian.T, x, divergence.directions(x, seeded(seed)))[1]


def at_the_end(model: GaussianMixture, sde: SDE) -> Callable[[Tensor], Tensor]:
    return lambda z: model.log_prob(z, *sde.scales(sde.t_max))


# The variance of theory


def off_diagonal_square(jacobian: Tensor) -> Tensor:
    """Var v.Jv = 2 |S|^2 less the diagonal for Rademacher v, S the symmetric part of J: (..., D, D) -> (...)."""
    symmetric = (jacobian + jacobian.mT) / 2
    return 2 * (symmetric.square().sum((-1, -2)) - symmetric.diagonal(dim1=-1, dim2=-2).square().sum(-1))


@dataclass(frozen=True)
class Jacobians(Exact):
    """Keeps the Jacobian of every evaluation; the divergence is that of `Exact`."""

    seen: tuple[list[Tensor]] = ([],)  # what it records is its purpose

    def estimates(self, products: Callable[[Tensor], Tensor], directions: Tensor) -> Tensor:
        rows = products(directions)  # J^T e_i is row i of J: (D, B, D)
        self.seen[0].append(rows.transpose(0, 1))
        return rows.diagonal(dim1=0, dim2=2).sum(1)[None]


COPIES, PROBES = 50, 200


@pytest.mark.parametrize("fresh", [True, False])
def test_hutchinson_on_a_grid_is_unbiased_and_its_error_that_of_theory(fresh: bool) -> None:
    """Heun's integral is sum_i h_i / 2 (d_i + d_i'), and x does not see the probes: with the Jacobians J_i on its way

    Var = sum_i (h_i / 2)^2 V(J_i) for fresh probes,   V(sum_i h_i / 2 J_i) for those kept.
    """
    sde, model = PATHS["vp"], mixture((4,))
    x, ts = batch(model, 1), grids.log_snr(sde, 8).flip(0)
    settings: dict[str, Any] = {"solver": Heun(), "ts": ts}
    recorder = Jacobians(seen=([],))
    exact = log_likelihood(model, sde, x, divergence=recorder, **settings).log_prob
    weighted = torch.cat(recorder.seen[0]) * ts.diff().repeat_interleave(2)[:, None, None] / 2
    theory = {True: off_diagonal_square(weighted).sum(), False: off_diagonal_square(weighted.sum(0))}
    assert theory[True] < 0.6 * theory[False]  # what fresh probes are for

    divergence = Hutchinson(PROBES, chunk=PROBES, fresh=fresh)
    result = log_likelihood(model, sde, x.expand(COPIES, 4).clone(), divergence=divergence, noise=seeded(4), **settings)
    assert result.std_error is not None
    # One point fifty times, each with 200 probes: 4 of its reported errors, a false alarm of 6e-5 each, 3e-3 in all.
    assert float(((result.log_prob - exact) / result.std_error).abs().max()) < 4
    # 1e4 probes of kurtosis 15 at most know a variance to sqrt(14 / 1e4) = 4 percent: 20 are five of that.
    assert float(result.std_error.square().mean()) * PROBES == pytest.approx(float(theory[fresh]), rel=0.2)
    assert float(result.log_prob.var()) * PROBES == pytest.approx(float(theory[fresh]), rel=5 * math.sqrt(2 / COPIES))


def kept_and_drawn(divergence: Divergence, **settings: Any) -> tuple[int, int]:
    """The number of calls of the noise and of the network."""
    sde, model = PATHS["vp"], mixture((3,))
    requests, noise = list[Tensor](), seeded(0)

    def listening(x: Tensor) -> Tensor:
        requests.append(x)
        return noise(x)

    result = log_likelihood(model, sde, batch(model, 2), divergence=divergence, noise=listening, **settings)
    return len(requests), int(result.nfe)


@pytest.mark.parametrize(("divergence", "each"), [(Hutchinson(3), 3), (HutchPlusPlus(2, 3), 5)], ids=repr)
def test_by_default_probes_are_fresh_on_a_grid_and_kept_where_steps_are_controlled(divergence: Any, each: int) -> None:
    grid = {"solver": AdamsMoulton(), "ts": grids.soft_clipped(PATHS["vp"], 6).flip(0)}
    for fresh in (None, True):
        draws, nfe = kept_and_drawn(replace(divergence, fresh=fresh), **grid)
        assert (draws, nfe) == (9 * each, 9)
    assert kept_and_drawn(replace(divergence, fresh=False), **grid)[0] == each
    for solver in (Adaptive(rtol=1e-2, atol=1e-2), Adaptive(rtol=1e-2, atol=1e-2, per_sample=False)):
        for fresh in (None, False):
            assert kept_and_drawn(replace(divergence, fresh=fresh), solver=solver)[0] == each
        with pytest.raises(ValueError, match="expected probes that stay the same for"):
            kept_and_drawn(replace(divergence, fresh=True), solver=solver)


# Orthogonal probes


def test_orthogonal_probes_are_at_right_angles_and_look_everywhere_alike() -> None:
    """E[v v^T] = 1."""
    n = 5000
    v = Hutchinson(3, "orthogonal").directions(torch.zeros(n, 5, dtype=torch.float64), seeded(0))
    products = torch.einsum("pbd,qbd->bpq", v, v)
    assert_close(products, 5 * torch.eye(3, dtype=torch.float64).expand(n, 3, 3), rtol=0, atol=1e-12)
    second = torch.einsum("pbd,pbe->pde", v, v) / n
    # Var v_i v_j <= E v_i^4 = 3 D / (D + 2) < 3; 75 numbers at 5 standard errors: a false alarm of 4e-5.
    assert_close(second, torch.eye(5, dtype=torch.float64).expand(3, 5, 5), rtol=0, atol=5 * math.sqrt(3 / n))


@pytest.mark.parametrize("probes", [1, 9])
def test_orthogonal_probes_are_unbiased_with_the_variance_of_theory(probes: int) -> None:
    """Var = 2 D (D - P) / (P (D - 1) (D + 2)) |S|^2, S the symmetric part less its trace: that of tr(S Q), Q a uniform
    projector on P of D dimensions, whose variance is quadratic in P, none at D, and Gaussian's own at 1."""
    n, jacobian = 4000, random_matrix(2)
    result = estimates(Hutchinson(probes, "orthogonal", chunk=9), jacobian, n).mean(1)
    traceless = (jacobian + jacobian.T) / 2 - jacobian.trace() / DIMS * torch.eye(DIMS, dtype=torch.float64)
    factor = 2 * DIMS * (DIMS - probes) / (probes * (DIMS - 1) * (DIMS + 2))
    variance = float(factor * traceless.square().sum())
    # 4 standard errors: 6e-5. A variance is known to sqrt(14 / n) at worst, 5 of which are 30 percent.
    assert abs(float(result.mean() - jacobian.trace())) < 4 * math.sqrt(variance / n)
    assert float(result.var()) == pytest.approx(variance, rel=5 * math.sqrt(14 / n))


def test_as_many_orthogonal_probes_as_dimensions_are_exact_and_more_are_refused() -> None:
    jacobian = random_matrix(3)
    result = estimates(Hutchinson(DIMS, "orthogonal"), jacobian, 20).mean(1)
    assert_close(result, jacobian.trace().expand(20), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="expected at most 10 orthogonal probes, got 11"):
        estimates(Hutchinson(DIMS + 1, "orthogonal"), jacobian, 20)

    sde, model = PATHS["cosine"], mixture((4,))
    settings: dict[str, Any] = {"solver": Heun(), "ts": grids.log_snr(sde, 6).flip(0)}
    x = batch(model, 3)
    exact, result = (
        log_likelihood(model, sde, x, divergence=divergence, **settings).log_prob
        for divergence in (Exact(), Hutchinson(4, "orthogonal"))
    )
    assert_close(result, exact, rtol=0, atol=1e-12)


# Hutch++


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_hutch_plus_plus_is_exact_where_its_basis_holds_the_range(mode: str) -> None:
    jacobian = low_rank(4)
    for divergence, matrix in ((HutchPlusPlus(4, 2, mode), jacobian), (HutchPlusPlus(16, 2, mode), random_matrix(5))):
        result = estimates(divergence, matrix, 20)
        # J S may be near to singular for signs S: then its basis has that many digits less.
        assert_close(result, matrix.trace().expand(20, 2), rtol=0, atol=1e-9)
    assert float((estimates(HutchPlusPlus(3, 2, mode), jacobian, 20) - jacobian.trace()).abs().min()) > 1e-6


def test_hutch_plus_plus_is_unbiased_and_better_than_hutchinson_where_few_directions_count() -> None:
    n, jacobian = 4000, low_rank(3) + 0.1 * random_matrix(6)
    result, plain = (estimates(d, jacobian, n) for d in (HutchPlusPlus(3, 4), Hutchinson(2 * 3 + 4, chunk=10)))
    assert result.shape == (n, 4)
    means = result.mean(1)
    # 4 standard errors: 6e-5.
    assert abs(float(means.mean() - jacobian.trace())) < 4 * float(means.std()) / math.sqrt(n)
    assert float(means.var()) < 0.1 * float(plain.mean(1).var())
    # Each sample's own probes say what error it has. A variance of kurtosis up to 40 (bases differ in what they leave):
    # sqrt(39 / n) is 10 percent, and 3 of it a false alarm of 3e-3.
    assert float(result.var(1).mean() / 4 / means.var()) == pytest.approx(1, abs=0.3)


def test_hutch_plus_plus_scores_a_mixture_without_bias() -> None:
    sde, model = PATHS["rectified"], mixture((8,))
    x, copies = batch(model, 1), 1000
    settings: dict[str, Any] = {"solver": Heun(), "ts": grids.log_snr(sde, 6).flip(0)}
    exact = log_likelihood(model, sde, x, divergence=Exact(), **settings).log_prob
    result = log_likelihood(
        model,
        sde,
        x.expand(copies, 8).clone(),
        divergence=HutchPlusPlus(2, 3),
        noise=seeded(7),
        **settings,
    )
    assert result.std_error is not None
    # Two numbers at 4 standard errors: 6e-5 each, the variance's own taken for kurtosis 15.
    assert abs(float(result.log_prob.mean() - exact)) < 4 * float(result.log_prob.std()) / math.sqrt(copies)
    ratio = float(result.std_error.square().mean() / result.log_prob.var())
    assert ratio == pytest.approx(1, abs=4 * math.sqrt(14 / copies))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HutchPlusPlus(0, 3), "probes of 1 or more"),
        (lambda: HutchPlusPlus(3, 0), "probes of 1 or more"),
        (lambda: HutchPlusPlus(mode="both"), "'reverse' or 'forward'"),
        (lambda: HutchPlusPlus(chunk=0), "a chunk"),
    ],
)
def test_settings_that_are_none_are_refused(make: Callable[[], Divergence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# What it costs


class Counting(torch.autograd.Function):
    """The identity, which counts how often a gradient passes it."""

    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Counting.backwards += 1
        return gradient


def network(dims: int, seed: int = 0) -> Denoiser:
    """A small one in float64, whose every weight counts."""
    torch.manual_seed(seed)
    net = MLP((dims,), width=8, blocks=1).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return Denoiser(net, precondition.v)


@pytest.mark.parametrize(
    ("divergence", "backwards"),
    [
        (Hutchinson(3), 3),
        (Hutchinson(3, "orthogonal", chunk=2), 2),
        (Exact(chunk=2), 3),
        (HutchPlusPlus(2, 3), 3),
    ],
    ids=repr,
)
def test_every_probe_shares_one_call_of_the_network(divergence: Divergence, backwards: int) -> None:
    """An evaluation runs the network once; a chunk of directions runs it back once."""
    sde, inner = PATHS["vp"], network(5)
    model = CountCalls(lambda x, alpha, sigma: Counting.apply(inner(x, alpha, sigma)))
    Counting.backwards = 0
    result = log_likelihood(
        model, sde, batch(mixture((5,)), 2), divergence=divergence, solver=Heun(), ts=grids.uniform(sde, 3).flip(0)
    )
    assert model.calls == result.nfe == 6
    assert Counting.backwards == 6 * backwards
    assert all(weight.grad is None for weight in inner.parameters())


# Networks without a forward mode


class NoForwardMode(torch.autograd.Function):
    """Tanh, of which only the gradient is known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradient * (1 - output.square())


class OldNoForwardMode(torch.autograd.Function):
    """The same as most such functions are written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradient * (1 - output.square())


def attention(x: Tensor) -> Tensor:
    """Over 6 tokens of 4 numbers, by a fused kernel where there is one."""
    tokens = x.reshape(len(x), 1, 6, 4)
    return scaled_dot_product_attention(tokens, 2 * tokens, tokens.tanh()).reshape(x.shape)


MIX = random_matrix(11, 24, 24) / 5


@pytest.mark.parametrize(
    ("layer", "divergence"),
    [(NoForwardMode.apply, Exact()), (OldNoForwardMode.apply, Hutchinson(3)), (attention, HutchPlusPlus(2, 2))],
    ids=("function", "old function", "attention"),
)
def test_a_network_without_forward_mode_is_taken_in_reverse(layer: Callable[[Tensor], Tensor], divergence: Any) -> None:
    sde = PATHS["cosine"]

    def model(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return layer(x @ MIX.to(x)) @ MIX.T.to(x)

    x = torch.randn(2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    settings: dict[str, Any] = {"solver": Euler(), "ts": grids.uniform(sde, 3).flip(0)}
    reverse = log_likelihood(model, sde, x, divergence=divergence, noise=seeded(0), **settings)
    forward = replace(divergence, mode="forward")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = log_likelihood(model, sde, x, divergence=forward, noise=seeded(0), **settings)
    if layer is not attention:  # whether it has a forward mode depends on the kernel that is taken
        assert any("this network has no forward mode, using reverse mode" in str(w.message) for w in caught)
    assert_close(result.log_prob, reverse.log_prob, rtol=1e-5, atol=1e-4)
    assert_close(result.latent, reverse.latent, rtol=1e-5, atol=1e-5)


def test_an_error_of_the_network_itself_is_not_taken_for_a_missing_forward_mode() -> None:
    def model(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    sde = PATHS["vp"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="shapes do not match"):
            log_likelihood(model, sde, batch(mixture((2,)), 2), divergence=Exact("forward"))


# Gradients of a likelihood


SOLVERS: dict[str, dict[str, Any]] = {
    "adams-moulton": {"solver": AdamsMoulton(4), "ts": 120},
    "adaptive": {"solver": TIGHT},
    "adaptive each": {"solver": replace(TIGHT, rtol=1e-6, atol=1e-6, per_sample=True)},
    "adjoint": {"solver": TIGHT, "differentiable": "adjoint"},
}


@pytest.mark.parametrize(
    ("name", "solver", "divergence"),
    [
        ("vp", "adams-moulton", Exact()),
        ("rectified", "adams-moulton", Exact("forward")),
        ("ve", "adaptive", Exact()),
        ("vp", "adaptive each", Exact(chunk=1)),
        ("rectified", "adjoint", Exact()),
    ],
)
def test_gradient_of_log_prob_by_x_is_the_score(name: str, solver: str, divergence: Divergence) -> None:
    sde, model = PATHS[name], mixture((2,))
    settings: dict[str, Any] = {"differentiable": True, **SOLVERS[solver]}
    if "ts" in settings:
        settings["ts"] = grids.soft_clipped(sde, settings["ts"], 0.02, 10.0).flip(0)
    x = batch(model, 3).requires_grad_()
    result = log_likelihood(model, sde, x, divergence=divergence, prior_log_prob=at_the_end(model, sde), **settings)
    (gradient,) = torch.autograd.grad(result.log_prob.sum(), x)
    # Scores are of size 1 to 4; found were differences up to 6e-4, where steps of 1e-7 add up.
    assert_close(gradient, model.score(x.detach(), *sde.scales(sde.t_min)), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("path", "method", "per_sample"),
    [("ve", "dopri5", True), ("rectified", "dopri5", False), ("ve", "dopri8", False), ("vp", "bosh3", True)],
)
def test_gradients_through_adaptive_steps_are_good_to_1e_4_at_the_default_tolerances(
    path: str, method: str, per_sample: bool
) -> None:
    # The density is the mixture's own at t_min, so its gradients are known, by x and by the means.
    sde, start = PATHS[path], mixture((2,))
    means, x = start.means.clone().requires_grad_(), batch(start, 2).requires_grad_()
    model = GaussianMixture(means, start.stds, start.weights)
    exact = torch.autograd.grad(model.log_prob(x, *sde.scales(sde.t_min)).sum(), [x, means])
    result = log_likelihood(
        model, sde, x, divergence=Exact(), solver=Adaptive(method, per_sample=per_sample), differentiable=True,
        prior_log_prob=lambda z: model.log_prob(z, *sde.scales(sde.t_max)),
    )  # fmt: skip
    for found, right in zip(torch.autograd.grad(result.log_prob.sum(), [x, means]), exact, strict=True):
        assert float((found - right).norm() / right.norm()) < 1e-4


def test_scipy_refuses_gradients_by_the_weights_too() -> None:
    solver = Adaptive("scipy:RK45")
    with pytest.raises(ValueError, match="expected a method that gradients pass through, got scipy:RK45"):
        of_weights(network(2), Exact(), batch(mixture((2,)), 2), solver=solver, differentiable=True)


def of_weights(model: Denoiser, divergence: Divergence, x: Tensor, **settings: Any) -> Tensor:
    noise = PerSampleNoise(3, range(len(x)))
    result = log_likelihood(model, PATHS["vp"], x, divergence=divergence, noise=noise, **settings)
    return result.log_prob.mean()


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize(
    ("solver", "divergence"),
    [
        (Heun(), Exact()),
        (Heun(), Exact("forward")),
        (AdamsMoulton(3), Hutchinson(2)),
        (AdamsMoulton(2), Hutchinson(2, "orthogonal", fresh=False)),
        # The basis of HutchPlusPlus counts as a constant, which is right where it spans every dimension.
        (AdamsMoulton(3), HutchPlusPlus(2, 2)),
    ],
    ids=repr,
)
def test_gradient_by_the_weights_is_that_of_finite_differences(solver: Any, divergence: Divergence) -> None:
    model, x = network(2), batch(mixture((2,)), 2)
    settings = {"solver": solver, "ts": grids.soft_clipped(PATHS["vp"], 5).flip(0)}
    weights = list(model.parameters())
    value = of_weights(model, divergence, x, differentiable=True, **settings)
    result = flat(torch.autograd.grad(value, weights, materialize_grads=True))
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, start, h = [], flat(weights).detach(), 1e-6
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * h * direction, weights)
        values.append(float(of_weights(model, divergence, x, **settings).detach()))
    difference = (values[0] - values[1]) / (2 * h)
    assert difference == pytest.approx(float(result @ direction), rel=1e-5)


@pytest.mark.parametrize("divergence", [Hutchinson()], ids=repr)
def test_the_adjoint_is_the_gradient_through_the_steps(divergence: Divergence) -> None:
    model = network(2)
    result = []
    for differentiable in (True, "adjoint"):
        x = batch(mixture((2,)), 2).requires_grad_()
        value = of_weights(
            model, divergence, x, solver=replace(TIGHT, rtol=1e-5, atol=1e-5), differentiable=differentiable
        )
        result.append((value.detach(), *torch.autograd.grad(value, [x, *model.parameters()], materialize_grads=True)))
    assert float(flat(result[0][2:]).norm()) > 0.1
    # Steps of 1e-5 add up, on the way there and back.
    assert_close(result[1][0], result[0][0], rtol=0, atol=1e-4)
    for adjoint, through in zip(result[1][1:], result[0][1:], strict=True):
        assert_close(adjoint, through, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (AdamsMoulton(), r"expected Adaptive\(per_sample=False\) for torchdiffeq's adjoint, got AdamsMoulton"),
        (Heun(), "for torchdiffeq's adjoint"),
        (Adaptive(), "a method of torchdiffeq, for the adjoint"),
        (Adaptive("scipy:RK45", per_sample=False), "adjoint"),
    ],
    ids=repr,
)
def test_an_adjoint_of_what_has_none_is_refused(solver: Any, message: str) -> None:
    sde = PATHS["vp"]
    ts = None if isinstance(solver, Adaptive) else grids.soft_clipped(sde, 5).flip(0)
    with pytest.raises(ValueError, match=message):
        of_weights(network(2), Exact(), batch(mixture((2,)), 2), solver=solver, ts=ts, differentiable="adjoint")


@pytest.mark.parametrize(
    "solver", [Adaptive(rtol=1e-2, atol=1e-2), replace(TIGHT, rtol=1e-2), AdamsMoulton()], ids=repr
)
def test_unless_asked_no_graph_is_built_even_for_weights_and_x_that_want_one(solver: Any) -> None:
    sde, model = PATHS["vp"], network(2)
    ts = None if isinstance(solver, Adaptive) else grids.soft_clipped(sde, 5).flip(0)
    x = batch(mixture((2,)), 2).requires_grad_()
    result = log_likelihood(model, sde, x, divergence=Hutchinson(2), solver=solver, ts=ts)
    for tensor in (result.log_prob, result.latent, result.std_error, *result.parts.values()):
        assert tensor is not None
        assert not tensor.requires_grad
    assert x.grad is None


# What is refused


def test_a_sample_that_is_not_finite_is_named() -> None:
    sde, model = PATHS["vp"], mixture((2,))
    x = batch(model, 5)
    x[3, 0], x[4, 1] = math.nan, math.inf
    for settings in ({}, {"tolerance": 1e-2}):
        with pytest.raises(ValueError, match="NaN or infinity in 2 of 5 samples, the first at index 3"):
            log_likelihood(model, sde, x, **settings)  # type: ignore[arg-type]


def test_integers_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"expected floating-point x0 in the model's units, got torch\.uint8: dequantise integers"
    ):
        log_likelihood(mixture((2,)), PATHS["vp"], torch.zeros(2, 2, dtype=torch.uint8))


def test_samples_made_in_inference_mode_are_scored_in_it_and_out_of_it() -> None:
    sde, model = PATHS["vp"], network(2)
    x = batch(mixture((2,)), 2)
    settings: dict[str, Any] = {
        "divergence": Exact(),
        "solver": AdamsMoulton(),
        "ts": grids.soft_clipped(sde, 5).flip(0),
    }
    expected = log_likelihood(model, sde, x, **settings).log_prob
    with torch.inference_mode():
        inside = x.clone()
        assert_close(log_likelihood(model, sde, inside, **settings).log_prob, expected, rtol=0, atol=0)
    assert inside.is_inference()
    assert_close(log_likelihood(model, sde, inside, **settings).log_prob, expected, rtol=0, atol=0)


def test_exact_divergence_of_a_network_in_training_mode_is_that_in_evaluation_mode() -> None:
    net = UNet(1, width=8, multipliers=(1,), blocks=1)
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    model, sde = Denoiser(net, precondition.eps), VPSDE()
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"divergence": Exact(), "solver": Heun("log_snr"), "ts": grids.log_snr(sde, 2).flip(0)}
    training, evaluation = (log_likelihood(model.train(mode), sde, x, **settings).log_prob for mode in (True, False))
    assert_close(training, evaluation, rtol=1e-5, atol=1e-4)
