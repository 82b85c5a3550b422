"""A data set scored in batches, against the closed form of a Gaussian whose mean depends on the label."""

import math
from dataclasses import replace
from typing import Any

import torch
from oracles import gaussian
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import DatasetScorer, Exact, GaussianPrior
from scorefield.models.analytic import Gaussian
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.quantise import dequantise
from scorefield.solvers import AdamsMoulton, PerSampleNoise, grids

MODEL, LEVELS, SDE = gaussian((3,)), 9, VPSDE(beta_max=40.0)


def shifted(label: Tensor) -> Gaussian:
    return Gaussian(MODEL.means[0] + 0.2 * label, MODEL.stds[0])


def denoiser(x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """Of the Gaussian with the mean of each sample's label: a shift of x by alpha times the shift of the mean."""
    shift = 0.2 * label[:, None].to(x)
    return MODEL(x - expand(alpha, x) * shift, alpha, sigma) + shift


def scorer(k: Tensor, label: Tensor) -> DatasetScorer:
    settings: dict[str, Any] = {"solver": AdamsMoulton(), "ts": grids.log_snr(SDE, 80).flip(0), "divergence": Exact()}
    return DatasetScorer(
        denoiser, SDE, k, LEVELS, GaussianPrior.standard(SDE), cond={"label": label}, seed=5, draws=64, **settings
    )


def test_integers_are_scored_as_their_density_times_the_cell_whatever_the_batch() -> None:
    k = torch.tensor([[1, 4, 7], [2, 3, 5], [6, 4, 2], [8, 0, 4]])
    label = torch.tensor([0, 2, 1, 3])
    scores = scorer(k, label)
    batches = [scores.ode(slice(0, 3)), scores.ode(slice(3, 4))]
    result = torch.cat([batch["ode"] for batch in batches])
    x, log_det = dequantise(k, LEVELS, uniform=PerSampleNoise(5, range(4), (0, 0)).uniform)
    scales = SDE.scales(SDE.t_min)
    exact = torch.stack(
        [shifted(y).log_prob(each[None].double(), *scales)[0] for each, y in zip(x, label, strict=True)]
    )
    # The values are float32, whose latents have errors of some 1e-4. The prior differs by 4e-5 |x0| a dimension.
    assert_close(result, exact + float(log_det), rtol=0, atol=5e-3)
    assert_close(scores.unit, 3 * math.log(2))
    # The bound of the same density: its mean is below, up to its own error.
    bound = scores.dsm(slice(0, 4))
    assert bool(((bound["dsm"] - result).abs() < 5 * bound["dsm_error"]).all())


def test_of_continuous_values_tolerance_and_errors_are_in_nats_for_each_dimension() -> None:
    """Against the closed form, which has the error of the worst of the trial samples themselves."""
    alpha, sigma = SDE.scales(SDE.t_min)
    generator = torch.Generator().manual_seed(0)
    x = (alpha * MODEL.sample(8, generator) + sigma * torch.randn(8, 3, generator=generator)).float()
    score = DatasetScorer(MODEL, SDE, x, None, GaussianPrior.standard(SDE))
    shares = list[float]()
    facts = score.choose(0.02, True, shares.append)
    assert_close(score.unit, 3.0)
    assert facts["trial_images"] == 6
    assert score.plan is not None
    assert_close(score.plan.tolerance, 0.02 / math.log(2))
    exact, columns = MODEL.log_prob(x.double(), alpha, sigma), score.ode(slice(0, 8))
    worst = float((columns["ode"] - exact).abs().max()) / 3
    assert worst < 0.02
    assert 0.3 * worst < float(columns["ode_solver_error"].max()) / 3 < 0.02
    assert shares == sorted(shares)


def test_estimators_and_neighbouring_seeds_share_no_random_number() -> None:
    """Whichever samples are compared: every uniform number of 24 dimensions is another."""
    stored = torch.zeros(5, 24, dtype=torch.int64)
    drawn = []
    for seed in range(10):
        scores = replace(scorer(stored, torch.zeros(5)), seed=seed)
        streams = [(stream,) for stream in range(9)] + [(0, draw) for draw in range(3)]
        drawn += [scores.noise_of(slice(0, 5), *stream).uniform(stored.double()) for stream in streams]
    numbers = torch.stack(drawn)
    assert len(numbers.unique()) == numbers.numel()
