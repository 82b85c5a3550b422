"""Log-densities against a mixture's own, divergences against full Jacobians, and bits/dim against counting."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PATHS, batch, gaussian, mixture
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import (
    Density,
    Exact,
    Hutchinson,
    bits_per_dim,
    dequantise,
    log_likelihood,
    mean_and_error,
)
from scorefield.likelihood.divergence import Divergence
from scorefield.models import MLP, Denoiser, precondition
from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.models.counting import CountCalls
from scorefield.sde_lib import SDE, VPSDE
from scorefield.solvers import AdamsMoulton, Adaptive, Euler, Heun, PerSampleNoise, Progress, Scales, grids, variables

SHARED = Adaptive(rtol=1e-6, atol=1e-6, per_sample=False)
NATS_PER_DIM = 1e-4  # what is promised; steps of 1e-6 add up to some 1e-5, in float32 too


def at_the_end(model: GaussianMixture, sde: SDE) -> Callable[[Tensor], Tensor]:
    """The mixture's own marginal at t_max, so that the prior has no part in the error."""
    return lambda z: model.log_prob(z, *sde.scales(sde.t_max))


def truth(model: GaussianMixture, sde: SDE, x: Tensor) -> Tensor:
    """The flow's density at t_min: that of the marginal there."""
    return model.log_prob(x.double(), *sde.scales(sde.t_min))


def rising(sde: SDE, steps: int) -> Tensor:
    return grids.log_snr(sde, steps).flip(0)


def seeded(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


# Densities


@pytest.mark.parametrize(
    ("path", "dtype"),
    [("vp", torch.float32), ("ve", torch.float64), ("rectified", torch.float64), ("ddpm-linear", torch.float64)],
    ids=str,
)
def test_log_prob_of_a_mixture_in_the_plane_is_its_own(path: str, dtype: torch.dtype) -> None:
    sde, model = PATHS[path], mixture((2,), dtype)
    x = torch.cat([batch(mixture((2,)), 3), torch.tensor([[2.5, -2.0]], dtype=torch.float64)]).to(dtype)
    result = log_likelihood(model, sde, x, divergence=Exact(), solver=SHARED, prior_log_prob=at_the_end(model, sde))
    assert result.log_prob.dtype == dtype
    assert result.log_prob.shape == (4,)
    assert result.latent.shape == (4, 2)
    assert_close(result.log_prob.double(), truth(mixture((2,)), sde, x), rtol=0, atol=2 * NATS_PER_DIM)
    assert_close(result.std_error, torch.zeros(4, dtype=dtype), rtol=0, atol=0)


def test_log_prob_of_a_mixture_of_images_is_its_own() -> None:
    sde = PATHS["subvp"]
    model, x = mixture((3, 8, 8), torch.float32), batch(mixture((3, 8, 8)), 2).float()
    divergence, solver = Exact(chunk=192), replace(SHARED, rtol=1e-5, atol=1e-5)
    result = log_likelihood(model, sde, x, divergence=divergence, solver=solver, prior_log_prob=at_the_end(model, sde))
    assert result.log_prob.dtype == torch.float32
    assert_close(result.log_prob.double(), truth(mixture((3, 8, 8)), sde, x), rtol=0, atol=192 * NATS_PER_DIM)


@pytest.mark.parametrize("shape", [(1,), (2, 3, 2, 2)], ids=str)
def test_log_prob_in_any_shape(shape: tuple[int, ...]) -> None:
    sde, model = PATHS["rectified"], gaussian(shape)
    x = batch(model, 3)
    result = log_likelihood(model, sde, x, divergence=Exact(), solver=SHARED, prior_log_prob=at_the_end(model, sde))
    dims = math.prod(shape)
    assert_close(result.log_prob, truth(model, sde, x), rtol=0, atol=dims * NATS_PER_DIM)


def test_latents_of_a_gaussian_are_its_quantiles_at_the_end() -> None:
    """The flow of a Gaussian keeps (x - alpha m) / s_t, s_t^2 = alpha^2 s^2 + sigma^2."""
    sde, model = PATHS["vp"], gaussian((3, 2))
    x = batch(model, 3)
    result = log_likelihood(model, sde, x, divergence=Exact(), solver=SHARED).latent
    standard = []
    for t, point in ((sde.t_min, x), (sde.t_max, result)):
        alpha, sigma = sde.scales(t)
        standard.append((point - alpha * model.means[0]) / torch.sqrt((alpha * model.stds[0]) ** 2 + sigma**2))
    assert_close(standard[1], standard[0], rtol=0, atol=1e-5)  # steps of 1e-6


@pytest.mark.parametrize("shape", [(3, 4)], ids=str)
def test_with_a_prior_the_path_reaches_no_marginal_need_be_given(shape: tuple[int, ...]) -> None:
    """At beta_max = 40 alpha(1) is 4e-5, which moves log p by |alpha x0 z|, of order 1e-5 a dimension."""
    sde, model = VPSDE(beta_max=40.0), mixture(shape)
    x = batch(model, 3)
    result = log_likelihood(model, sde, x, divergence=Exact(), solver=SHARED)
    assert_close(result.log_prob, truth(model, sde, x), rtol=0, atol=math.prod(shape) * NATS_PER_DIM)
    assert float(sde.prior_kl(x).max()) < 1e-6


def test_the_defaults_are_one_probe_and_an_adaptive_solver() -> None:
    sde, model = PATHS["vp"], mixture((2,))
    x = batch(model, 2)
    torch.manual_seed(0)
    result = log_likelihood(model, sde, x)
    torch.manual_seed(0)
    spelt = log_likelihood(model, sde, x, divergence=Hutchinson(probes=1), solver=Adaptive(), noise=torch.randn_like)
    assert_close(result.log_prob, spelt.log_prob, rtol=0, atol=0)
    assert result.std_error is None
    assert spelt.std_error is None


@pytest.mark.parametrize("method", ["dopri8", "bosh3", "scipy:DOP853"])
def test_adaptive_methods_agree(method: str) -> None:
    sde, model = PATHS["cosine"], mixture((2,))
    x = batch(model, 2)
    loose = {"bosh3": 1e-5}.get(method, 1e-6)  # of order 3: a tolerance of 1e-6 takes it a thousand evaluations
    solver = Adaptive(method, rtol=loose, atol=loose)
    result = log_likelihood(model, sde, x, divergence=Exact(), solver=solver, prior_log_prob=at_the_end(model, sde))
    assert_close(result.log_prob, truth(model, sde, x), rtol=0, atol=2 * NATS_PER_DIM)


def test_heun_is_of_order_two_and_euler_of_order_one() -> None:
    """Halving the step divides the error in log p by 4 and by 2."""
    sde, model = PATHS["rectified"], gaussian((3,))
    x = batch(model, 2)

    def error(solver: Heun | Euler, steps: int) -> float:
        prior = at_the_end(model, sde)
        result = log_likelihood(
            model, sde, x, divergence=Exact(), solver=solver, ts=rising(sde, steps), prior_log_prob=prior
        )
        return float((result.log_prob - truth(model, sde, x)).abs().max())

    # The next term of the error is some tenths of the leading one, h times it: it moves the order by less than this.
    assert math.log2(error(Heun(), 80) / error(Heun(), 160)) == pytest.approx(2.0, abs=0.15)
    assert math.log2(error(Euler(), 80) / error(Euler(), 160)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "shape"),
    [(SHARED, (1,)), (Adaptive(), (2, 3)), (Adaptive("scipy:RK45"), (1,)), (Heun(), (2, 3))],
    ids=str,
)
def test_one_sample_alone_is_no_special_case(shape: tuple[int, ...], solver: Any) -> None:
    sde, model = PATHS["vp"], mixture(shape)
    pair = batch(model, 2)
    ts = rising(sde, 20) if isinstance(solver, Heun) else None
    single, both = (log_likelihood(model, sde, x, divergence=Exact(), solver=solver, ts=ts) for x in (pair[:1], pair))
    assert single.log_prob.shape == (1,)
    assert_close(single.std_error, torch.zeros(1, dtype=torch.float64), rtol=0, atol=0)
    assert_close(single.log_prob, both.log_prob[:1], rtol=0, atol=1e-4)  # a batch shares its steps with SHARED


@pytest.mark.parametrize(
    ("solver", "probes", "dtype"),
    [
        (Adaptive(rtol=1e-2, atol=1e-2), 3, torch.float64),
        (Adaptive("scipy:RK45", rtol=1e-2, atol=1e-2), 1, torch.float64),
        (Heun(), 3, torch.float32),
    ],
    ids=str,
)
def test_log_prob_of_a_sample_does_not_depend_on_its_batch(solver: Any, probes: int, dtype: torch.dtype) -> None:
    sde, model = PATHS["vp"], mixture((2, 3), dtype)
    x = batch(mixture((2, 3)), 4).to(dtype)

    def of(indices: list[int]) -> Density:
        ts = rising(sde, 10) if isinstance(solver, Heun) else None
        noise = PerSampleNoise(7, indices)
        return log_likelihood(model, sde, x[indices], divergence=Hutchinson(probes), solver=solver, ts=ts, noise=noise)

    together = of([0, 1, 2, 3])
    for indices in ([0], [2], [3, 1]):
        some = of(indices)
        # Adaptive takes samples one by one: the same numbers. Heun takes them together, where sums may run
        # in another order: roundings of a log-density of size 10, through 20 evaluations.
        atol = 100 * torch.finfo(dtype).eps if isinstance(solver, Heun) else 0.0
        assert_close(some.log_prob, together.log_prob[indices], rtol=0, atol=atol)
        assert_close(some.latent, together.latent[indices], rtol=0, atol=atol)
        if probes > 1:
            assert_close(some.std_error, together.std_error[indices], rtol=0, atol=atol + 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("solver", "divergence", "steps", "nfe"),
    [
        (Heun(), Exact(), 7, 14),
        (Euler(), Hutchinson(5), 7, 7),
        (SHARED, Exact(), None, None),
        (Adaptive(rtol=1e-3), Hutchinson(1), None, None),
    ],
    ids=str,
)
def test_evaluations_are_counted(solver: Any, divergence: Divergence, steps: int | None, nfe: int | None) -> None:
    sde, model = PATHS["vp"], CountCalls(mixture((2,)))
    x = batch(mixture((2,)), 3)
    ts = None if steps is None else rising(sde, steps)
    result = log_likelihood(model, sde, x, divergence=divergence, solver=solver, ts=ts)
    check = 3 * (3 + 2) if solver.splits_batch else 0  # answers of the batch and of two samples, at three times
    assert result.nfe == (model.samples - check) / 3
    if nfe is not None:
        assert result.nfe == nfe


def test_each_step_is_reported() -> None:
    seen: list[Progress] = []
    sde, model = PATHS["vp"], mixture((2,))
    log_likelihood(model, sde, batch(model, 2), solver=Heun(), ts=rising(sde, 4), on_step=seen.append)
    assert [(p.step, p.steps) for p in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].t == sde.t_max
    assert seen[-1].x.shape == (2, 2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_log_prob_does_not_depend_on_the_grad_mode_and_carries_no_graph(mode: Callable[[], Any]) -> None:
    sde, x = PATHS["vp"], batch(mixture((2,)), 2)
    model = Denoiser(MLP((2,), width=8, blocks=1).double(), precondition.eps)
    outside = log_likelihood(model, sde, x, divergence=Exact(), solver=Heun(), ts=rising(sde, 4))
    with mode():
        inside = log_likelihood(model, sde, x, divergence=Exact(), solver=Heun(), ts=rising(sde, 4))
    assert_close(inside.log_prob, outside.log_prob, rtol=0, atol=0)
    assert not outside.log_prob.requires_grad
    assert not inside.log_prob.requires_grad


def test_a_falling_grid_is_refused() -> None:
    sde, model = PATHS["vp"], mixture((2,))
    with pytest.raises(ValueError, match=r"expected a rising grid.*ts.flip\(0\)"):
        log_likelihood(model, sde, batch(model, 2), solver=Heun(), ts=grids.uniform(sde, 5))
    with pytest.raises(ValueError, match="expected a rising grid"):
        log_likelihood(model, sde, batch(model, 2), ts=grids.uniform(sde, 5))


def test_a_solver_that_keeps_a_grid_needs_one() -> None:
    sde, model = PATHS["vp"], mixture((2,))
    with pytest.raises(ValueError, match=r"expected a grid for Heun\(variable='time'\), got None: pass a rising one"):
        log_likelihood(model, sde, batch(model, 2), solver=Heun())


@pytest.mark.parametrize("probes", [16])
def test_scipys_tolerance_means_the_same_however_many_probes_ride_along(probes: int) -> None:
    """The 48 numbers of x do not hide the error of the log-density: at 1e-4 a step it is about 1e-2 nats. The same
    holds for dopri5, which measures x and the log-density separately."""
    sde, model = PATHS["vp"], mixture((3, 4, 4))
    x = batch(model, 1)

    def log_prob(method: str, tolerance: float) -> float:
        solver = Adaptive(method, rtol=tolerance, atol=tolerance)
        result = log_likelihood(model, sde, x, divergence=Hutchinson(probes), solver=solver, noise=seeded(5))
        return float(result.log_prob)

    assert log_prob("scipy:RK45", 1e-4) == pytest.approx(log_prob("dopri5", 1e-5), abs=0.05)


# Divergences


WEIGHTS = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def field(x: Tensor) -> Tensor:
    """A nonlinear field of each sample (2, 3) by itself, whose Jacobian is full and not symmetric."""
    first, second = WEIGHTS.to(x.dtype)
    flat = x.flatten(1)
    return (torch.tanh(flat @ first) @ second + 0.3 * flat.square() * flat.roll(1, 1)).reshape(x.shape)


def jacobians(x: Tensor) -> Tensor:
    """Of each sample, (B, 6, 6), a row at a time by autograd."""
    full = torch.autograd.functional.jacobian(lambda y: field(y).flatten(1), x).reshape(len(x), 6, len(x), 6)
    return torch.stack([full[i, :, i] for i in range(len(x))])


def somewhere(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("mode", "chunk", "dtype"),
    [
        ("forward", 4, torch.float64),
        ("reverse", 1, torch.float64),
        ("reverse", 4, torch.float32),
        ("reverse", 32, torch.float64),
    ],
)
def test_exact_is_the_trace_of_the_full_jacobian(mode: str, chunk: int, dtype: torch.dtype) -> None:
    x, divergence = somewhere(4, dtype), Exact(mode=mode, chunk=chunk)
    value, estimates = divergence(field, x, divergence.directions(x, torch.randn_like))
    assert estimates.shape == (4, 1)
    assert estimates.dtype == dtype
    trace = jacobians(x.double()).diagonal(dim1=1, dim2=2).sum(1)
    # Six terms of size ten, each through sums over six.
    assert_close(estimates[:, 0].double(), trace, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)
    assert_close(value, field(x), rtol=0, atol=0)


@pytest.mark.parametrize("divergence", [Exact, Hutchinson])
def test_forward_and_reverse_mode_are_one(divergence: Callable[..., Divergence]) -> None:
    x = somewhere(4)
    result = []
    for mode in ("forward", "reverse"):
        by = divergence(mode=mode)
        result.append(by(field, x, by.directions(x, seeded(1)))[1])
    assert_close(result[0], result[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("distribution", "mode"), [("rademacher", "forward"), ("gaussian", "reverse")])
def test_hutchinson_is_unbiased_with_the_variance_of_theory(distribution: str, mode: str) -> None:
    """Var v.Jv = 2 |S|^2 for Gaussian v, and without the diagonal for Rademacher, S the symmetric part of J."""
    n = 20000
    x = somewhere(1)
    divergence = Hutchinson(probes=n, distribution=distribution, mode=mode, chunk=n)
    estimates = divergence(field, x, divergence.directions(x, seeded(2)))[1][0]
    jacobian = jacobians(x)[0]
    symmetric = (jacobian + jacobian.T) / 2
    variance = 2 * symmetric.square().sum()
    if distribution == "rademacher":
        variance = variance - 2 * symmetric.diagonal().square().sum()
    # z-test at 5 standard errors: a false alarm of 6e-7, once for the fixed seed.
    assert abs(float(estimates.mean() - jacobian.trace())) < 5 * math.sqrt(float(variance) / n)
    # The variance's own error is sqrt((kurtosis - 1) / n) <= sqrt(14 / n): one eigenvalue alone has kurtosis 15.
    assert float(estimates.var() / variance) == pytest.approx(1, abs=5 * math.sqrt(14 / n))


def test_one_probe_serves_a_whole_trajectory_and_each_sample_has_its_own() -> None:
    x = somewhere(500)
    signs = Hutchinson(probes=2).directions(x, seeded(3))
    assert signs.shape == (2, 500, 2, 3)
    assert signs.dtype == x.dtype
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # 6000 signs, and products of neighbours: means within 5 / sqrt(n), false alarms 6e-7 each.
    assert abs(float(signs.mean())) < 5 / math.sqrt(6000)
    assert abs(float((signs[:, 1:] * signs[:, :-1]).mean())) < 5 / math.sqrt(5988)
    assert abs(float((signs[0] * signs[1]).mean())) < 5 / math.sqrt(3000)
    normals = Hutchinson(probes=2, distribution="gaussian").directions(x, seeded(3))
    assert_close(torch.where(normals < 0, -1.0, 1.0).double(), signs, rtol=0, atol=0)


COPIES = 1000


@pytest.mark.parametrize("distribution", ["gaussian"])
def test_hutchinsons_log_prob_is_unbiased_and_its_std_error_calibrated(distribution: str) -> None:
    """One point a thousand times, each copy with eight probes, against the exact divergence on that grid.

    The trajectory does not depend on the probes, so the estimate is unbiased at any number of steps.
    """
    sde, model = PATHS["vp"], mixture((3,))
    x = batch(model, 1)
    settings: dict[str, Any] = {"solver": Heun(), "ts": rising(sde, 6)}
    exact = log_likelihood(model, sde, x.expand(2, 3), divergence=Exact(), **settings).log_prob[0]
    divergence = Hutchinson(8, distribution)
    result = log_likelihood(model, sde, x.expand(COPIES, 3).clone(), divergence=divergence, noise=seeded(4), **settings)
    spread = float(result.log_prob.std())
    assert spread > 1e-3
    # z-test at 5 standard errors: false alarm 6e-7.
    assert abs(float(result.log_prob.mean() - exact)) < 5 * spread / math.sqrt(COPIES)
    # The mean of std_error^2 is the variance of log_prob. A variance from n values is good to sqrt((kurtosis - 1) / n),
    # sqrt(3.5 / n) for the mean of eight probes of kurtosis up to 15; 5 of them, false alarm 6e-7.
    assert result.std_error is not None
    assert result.std_error.shape == (COPIES,)
    ratio = float(result.std_error.square().mean()) / spread**2
    assert ratio == pytest.approx(1, abs=5 * math.sqrt(3.5 / COPIES))


def test_probes_of_a_field_with_a_diagonal_jacobian_are_exact() -> None:
    """An axis-aligned Gaussian's flow: v_i J_ii v_i = J_ii for signs, so Rademacher has no error at all."""
    sde, model = PATHS["rectified"], gaussian((2, 3))
    x = batch(model, 3)
    result = log_likelihood(
        model, sde, x, divergence=Hutchinson(4), solver=SHARED, prior_log_prob=at_the_end(model, sde)
    )
    assert_close(result.log_prob, truth(model, sde, x), rtol=0, atol=6 * NATS_PER_DIM)
    assert result.std_error is not None
    assert float(result.std_error.max()) < 1e-10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exact(mode="backward"), "expected mode 'reverse' or 'forward'"),
        (lambda: Exact(chunk=0), "a chunk and probes of 1 or more"),
        (lambda: Hutchinson(probes=0), "probes of 1 or more"),
        (lambda: Hutchinson(distribution="normal"), "expected rademacher, gaussian, orthogonal"),
        (lambda: Hutchinson(mode="both"), "expected mode 'reverse' or 'forward'"),
    ],
)
def test_settings_that_are_none_are_refused(make: Callable[[], Divergence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Bits


@pytest.mark.parametrize(("levels", "low", "high"), [(17, -1.0, 1.0), (256, 0.0, 1.0)])
def test_a_uniform_density_costs_log2_of_the_levels(levels: int, low: float, high: float) -> None:
    k = torch.randint(levels, (6, 3, 4), generator=torch.Generator().manual_seed(0))
    x, log_det = dequantise(k, levels, low=low, high=high)
    log_prob = torch.full((6,), -12 * math.log(high - low), dtype=torch.float64)
    assert x.shape == k.shape
    assert_close(
        bits_per_dim(log_prob + log_det, 12),
        torch.full((6,), math.log2(levels), dtype=torch.float64),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_density_constant_on_the_cells_costs_its_entropy() -> None:
    """P over 17 levels as the density P(k) / cell: coding a data set whose frequencies are P takes H(P) bits."""
    counts = torch.tensor([1, 2, 3, 5, 8, 13, 21, 34, 55, 34, 21, 13, 8, 5, 3, 2, 1])
    k = torch.repeat_interleave(torch.arange(17), counts)[:, None]
    frequency = counts.double() / counts.sum()
    x, log_det = dequantise(k, 17, uniform=lambda like: torch.full_like(like, 0.25))
    cell = ((x.double() + 1) / (2 / 17)).floor().long()
    log_prob = (frequency[cell] / (2 / 17)).log().sum(1)
    entropy = -(frequency * frequency.log2()).sum()
    assert float(bits_per_dim(log_prob + log_det, 1).mean()) == pytest.approx(float(entropy), rel=1e-6)


def test_bits_per_dim_of_a_wide_gaussian_is_its_entropy_in_cells() -> None:
    """Smooth on the scale of a cell: E bits = h / (D log 2) + log2(1 / cell), h = D log(s sqrt(2 pi e))."""
    levels, n, std = 256, 2000, 0.1
    sde = PATHS["edm"]
    model = Gaussian(torch.zeros(8, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    x0 = model.sample((n,), generator=torch.Generator().manual_seed(0))
    k = ((x0 + 1) / 2 * levels).floor().long().clamp(0, levels - 1)
    x, log_det = dequantise(
        k, levels, uniform=lambda like: torch.rand(like.shape, generator=torch.Generator().manual_seed(1))
    )
    settings: dict[str, Any] = {"solver": SHARED, "prior_log_prob": at_the_end(model, sde)}
    result = log_likelihood(model, sde, x.double(), divergence=Hutchinson(), noise=seeded(0), **settings)
    mean, error = mean_and_error(bits_per_dim(result.log_prob + log_det, 8))
    expected = math.log2(std * math.sqrt(2 * math.pi * math.e)) + math.log2(levels / 2)
    # 5 standard errors (false alarm 6e-7) and the cell's own width, cell^2 / (12 s^2) / log 2 of 7e-4 bits.
    assert abs(mean - expected) < 5 * error + 1e-3
    assert error == pytest.approx(math.sqrt(0.5 / 8) / math.log(2) / math.sqrt(n), rel=0.1)  # Var log p = D / 2


def test_bits_per_dim_is_minus_log2_a_dimension() -> None:
    assert_close(bits_per_dim(torch.tensor([-math.log(2), 0.0, 6 * math.log(2)]), 3), torch.tensor([1 / 3, 0.0, -2.0]))


def test_mean_and_error_are_numpys() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=50)
    mean, error = mean_and_error(torch.tensor(values))
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)
    # In float64 whatever the values' dtype: a float32 sum would lose the fourth digit here.
    assert mean_and_error(torch.full((100_000,), 16777.217))[0] == pytest.approx(
        float(np.float32(16777.217)), rel=1e-12
    )


def test_the_error_of_one_value_is_unknown() -> None:
    mean, error = mean_and_error(torch.tensor([2.5]))
    assert mean == 2.5
    assert math.isnan(error)


# Adams-Bashforth-Moulton, and the states of integration variables


def narrow(dims: int) -> GaussianMixture:
    """Ten modes in the cube, of standard deviations 0.05 to 0.2."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand(10, dims, generator=generator, dtype=torch.float64) - 1
    stds = 0.05 + 0.15 * torch.rand(10, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, stds, torch.ones(10).double())


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_adams_moulton_needs_few_evaluations(path: str) -> None:
    # Mean errors in bits/dim of 12 points that were seen are 1.3e-3 and 2e-4 (Heun's, in log-SNR: 0.1 and 0.04).
    sde, model = PATHS[path], narrow(16)
    x = model.sample(12, torch.Generator().manual_seed(1))
    exact = model.log_prob(x, *sde.scales(sde.t_min))
    for evaluations, bound in ((25, 3e-3), (50, 5e-4)):
        density = log_likelihood(
            model, sde, x, divergence=Exact(), solver=AdamsMoulton(),
            ts=grids.soft_clipped(sde, evaluations - 3, 0.02, 10.0).flip(0),
            prior_log_prob=lambda z: model.log_prob(z, *sde.scales(sde.t_max)),
        )  # fmt: skip
        assert density.nfe == evaluations
        assert float((density.log_prob - exact).abs().mean()) / 16 / math.log(2) < bound


@pytest.mark.parametrize(("path", "order"), [("vp", 1), ("ve", 2)])
def test_adams_moulton_has_its_order_in_the_value_and_its_density(path: str, order: int) -> None:
    # At least: corrected, the method of order 1 is of order 2, and where errors change their sign between two grids the
    # slope is larger.
    sde, model = PATHS[path], gaussian((2,))
    x = batch(model, 4)
    exact = model.log_prob(x, *sde.scales(sde.t_min))
    errors = [
        float((log_likelihood(
            model, sde, x, divergence=Exact(), solver=AdamsMoulton(order),
            ts=grids.soft_clipped(sde, steps, 0.02, 10.0).flip(0),
            prior_log_prob=lambda z: model.log_prob(z, *sde.scales(sde.t_max)),
        ).log_prob - exact).norm())
        for steps in (100, 200)
    ]  # fmt: skip
    assert -np.polyfit(np.log([100, 200]), np.log(errors), 1)[0] > order - 0.2


OWN_CLOCK = variables.SoftClippedLogSNR(0.05, 5.0, spread=0.5)


@pytest.mark.parametrize(
    ("path", "variable"),
    [
        *(("vp", variable) for variable in variables.VARIABLES.values()),
        ("ve", OWN_CLOCK),
        ("rectified", OWN_CLOCK),
        ("ve", variables.VARIABLES["log_snr"]),
    ],
    ids=repr,
)
def test_the_density_is_the_same_in_every_integration_variable(
    path: str, variable: variables.IntegrationVariable
) -> None:
    # Whatever the state is divided by, its growth is that of its size, and what the integral leaves out comes back.
    sde, model = PATHS[path], gaussian((2,))
    t, h = sde.time(torch.tensor([-3.0, 0.5, 4.0], dtype=torch.float64)), 1e-6
    sizes = [variable.scaling(Scales.at(sde, t + shift)) for shift in (-h, h)]
    if sizes[0] is not None and sizes[1] is not None:
        torch.testing.assert_close(
            variable.log_scaling_rate(Scales.at(sde, t)),
            (sizes[1].log() - sizes[0].log()) / (2 * h),
            rtol=1e-4,
            atol=1e-4,
        )
    x = batch(model, 3)
    density = log_likelihood(
        model, sde, x, divergence=Exact(), solver=Adaptive(rtol=1e-7, atol=1e-7, variable=variable),
        prior_log_prob=lambda z: model.log_prob(z, *sde.scales(sde.t_max)),
    )  # fmt: skip
    exact = model.log_prob(x, *sde.scales(sde.t_min))
    torch.testing.assert_close(density.log_prob, exact, rtol=0, atol=1e-3)
