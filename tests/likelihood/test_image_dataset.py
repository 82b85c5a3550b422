"""Images scored through an autoencoder, some at a time, by every estimator; a linear-Gaussian model judges."""

import math
from typing import Any

import pytest
import torch
from linear_autoencoder import BATCH, CODES, PIXELS, SIDE, LinearAutoencoder

from scorefield.likelihood import Exact, GaussianPrior, Hutchinson, ImageScorer, PixelDistribution, dataset
from scorefield.models.moments import Moments
from scorefield.sde_lib import VPSDE
from scorefield.sde_lib.quantise import cell_centres, quantise
from scorefield.solvers import AdamsMoulton, PerSampleNoise, grids

SDE = VPSDE()


def scorer(model: LinearAutoencoder, **changes: Any) -> ImageScorer:
    settings = {
        "solver": AdamsMoulton(), "ts": grids.log_snr(SDE, 60).flip(0), "divergence": Exact(), "levels": None,
        "stored": model.x0, "pixels": PIXELS,
    } | changes  # fmt: skip
    return ImageScorer(model.prior(), SDE, prior=GaussianPrior.standard(SDE), autoencoder=model, **settings)


def test_parts_of_the_flow_sum_to_the_exact_likelihood() -> None:
    model = LinearAutoencoder()
    columns = scorer(model, code_draws=2).ode(slice(0, BATCH))
    parts = columns["ode_pixels"] + columns["ode_codes"] + columns["ode_encoder"]
    torch.testing.assert_close(columns["ode"], parts)
    # the path at t_min and at t_max, and codes in float32: see the test of the flow in test_through_autoencoder
    torch.testing.assert_close(columns["ode"], model.log_prob(), rtol=0, atol=5e-3)
    torch.testing.assert_close(columns["ode_importance"], model.log_prob(), rtol=0, atol=5e-3)
    assert columns["ode_nfe"].tolist() == [2 * 63.0] * BATCH  # 60 steps, three that begin
    assert columns["latent"].shape == (BATCH, CODES, 1, 1)
    assert float(columns["ode_error"].max()) < 5e-3


@pytest.mark.parametrize("name", ["ode", "dsm", "elbo", "vlb"])
def test_an_image_has_the_same_value_in_any_batch(name: str) -> None:
    own = scorer(LinearAutoencoder(0.7), code_draws=2, draws=8, chain=20, divergence=Hutchinson())
    whole = getattr(own, name)(slice(0, BATCH))
    parts = [getattr(own, name)(rows) for rows in (slice(0, 2), slice(2, BATCH))]
    assert whole.keys() == parts[0].keys()
    for column, values in whole.items():
        torch.testing.assert_close(values, torch.cat([part[column] for part in parts]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2])
def test_images_go_through_the_autoencoder_in_parts_with_the_same_result(at_once: int) -> None:
    model = LinearAutoencoder(0.7)
    whole, parts = (scorer(model, at_once=size).ode(slice(0, BATCH)) for size in (None, at_once))
    for column, values in whole.items():
        torch.testing.assert_close(values, parts[column])


@pytest.mark.parametrize("name", ["dsm", "elbo", "vlb"])
def test_bounds_of_the_codes_are_below_the_likelihood_and_near_it(name: str) -> None:
    """An exact denoiser: they are tight, but for t_min and the chain's 4,000 steps (0.045 nats: 0.89 at 200)."""
    model = LinearAutoencoder()
    model.x0 = model.x0.repeat(20, 1, 1, 1)
    columns = getattr(scorer(model, code_draws=4, draws=32, chain=4000), name)(slice(0, len(model.x0)))
    lost = model.log_prob() - columns[name]
    assert abs(float(lost.mean())) < 4 * float(lost.std()) / len(lost) ** 0.5 + 0.06
    # the error that is told, against the spread about the truth: each is of 3 degrees of freedom, 100 images
    told = columns[f"{name}_error"].square().mean().sqrt()
    assert 0.6 < float(told / lost.square().mean().sqrt()) < 1.6
    assert f"{name}_importance" not in columns


def test_the_tolerance_is_in_units_of_the_image() -> None:
    model = LinearAutoencoder()
    assert scorer(model).unit_of_points == pytest.approx(SIDE**2 / (CODES * math.log(2)))
    k = torch.arange(BATCH * SIDE**2).reshape(BATCH, 1, SIDE, SIDE)
    of_levels = scorer(model, stored=k, levels=256)
    assert of_levels.unit_of_points == pytest.approx(SIDE**2 / CODES)
    torch.testing.assert_close(of_levels.images(slice(0, 2)), cell_centres(k[:2], 256))
    score = scorer(model, solver=None, ts=None)
    score.choose(1e-3, choose_divergence=True)
    assert score.plan is not None
    assert score.plan.met
    errors = score.ode(slice(0, BATCH))["ode_solver_error"] / score.unit
    assert bool((errors <= 1e-3).all())
    assert bool((errors > 0).all())


def test_integers_are_probabilities_of_their_cells() -> None:
    """Cells of 1/128 are small beside the noise of 0.3: a probability is the density times the cell's volume."""
    model, levels, ends = LinearAutoencoder(), 1024, {"low": -4.0, "high": 4.0}
    x0 = model.decode(model.posterior(model.x0)) + 0.2 * model.x0
    k = quantise(x0, levels, **ends)
    model.x0 = cell_centres(k, levels, **ends).double()
    pixels = PixelDistribution("normal", PIXELS.scale, levels, **ends)
    columns = scorer(model, stored=k, levels=levels, pixels=pixels, **ends).ode(slice(0, BATCH))
    # the share of outliers costs 9 * 1e-4, the cells' second order less
    torch.testing.assert_close(columns["ode"], model.log_prob() - SIDE**2 * math.log(128), rtol=0, atol=0.01)


def test_an_autoencoder_without_a_density_is_refused() -> None:
    class Deterministic(LinearAutoencoder):
        def moments(self, images: torch.Tensor) -> Moments:
            return Moments(super().moments(images).mean)

    with pytest.raises(ValueError, match="is infinite, and there is no bound"):
        scorer(Deterministic()).ode(slice(0, BATCH))


def test_draws_of_codes_and_neighbouring_seeds_share_no_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[PerSampleNoise]()

    class Noise(PerSampleNoise):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(PerSampleNoise(*args))

    monkeypatch.setattr(dataset, "PerSampleNoise", Noise)
    for seed in (0, 1):
        own = scorer(
            LinearAutoencoder(0.7),
            code_draws=3,
            draws=2,
            divergence=Hutchinson(),
            seed=seed,
            ts=grids.log_snr(SDE, 4).flip(0),
        )
        own.ode(slice(0, BATCH))
        own.dsm(slice(0, BATCH))
    numbers = [tuple(noise.uniform(torch.zeros(BATCH, 2, dtype=torch.float64)).flatten().tolist()) for noise in made]
    # of each seed: codes; probes and dequantisation, the same for the three draws of "ode"; three draws of "dsm"
    assert len(set(numbers)) == 2 * (1 + 1 + 3)
    assert len({number for each in set(numbers) for number in each}) == 10 * 2 * BATCH
