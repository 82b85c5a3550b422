"""The configurations: each builds and trains, and its network and path are those of its paper."""

import importlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch.testing import assert_close

from configs import build, cifar10
from models import Denoiser, precondition
from models.importers.published import SCORE_SDE
from models.importers.score_sde import recipe
from models.precondition import Told
from sde_lib import SDE, VESDE, VPSDE
from training import dsm_loss

# What writes docs/networks.md is not installed.
TABLE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "networks.py"))
ROWS, count, network = (TABLE[name] for name in ("ROWS", "count", "network"))
FILES = ("cifar10", "celeba", "lsun", "celebahq", "ffhq", "imagenet")
VARIANTS = [(file, v) for file in FILES for v in importlib.import_module(f"configs.{file}").VARIANTS]
variants = pytest.mark.parametrize(("file", "variant"), VARIANTS, ids=[":".join(each) for each in VARIANTS])


def config_of(file: str, variant: str) -> ConfigDict:
    config: ConfigDict = importlib.import_module(f"configs.{file}").get_config(variant)
    return config


def toy(config: ConfigDict) -> tuple[int, int, int]:
    """Make the network as small as it can be, with all its levels, and give the smallest shape that it takes."""
    net = config.net
    net.width = 4 * net.heads if net.name == "dit" else 4
    net.update({key: 1 for key in ("blocks",) if key in net} | ({"depth": 1} if net.name == "dit" else {}))
    if net.name == "adm":
        net.head_width = 2
    if net.name == "dit":
        return 4, 2 * net.patch, net.patch
    if net.name in ("ncsn", "ncsnv2"):
        return 3, (side := 2 ** (net.depth - 2)), 2 * side
    side = 2 ** (len(net.multipliers) - 1) if "multipliers" in net else 3
    return 3, side, side


def built(config: ConfigDict) -> tuple[SDE, Denoiser]:
    sde: SDE = build.build(build.SDES, config.sde)
    return sde, build.denoiser(config, (3, 8, 8), None)


@variants
def test_every_variant_trains_at_toy_size(file: str, variant: str) -> None:
    config = config_of(file, variant)
    shape, classes = toy(config), 5 if config.training.labels else None
    torch.manual_seed(0)
    sde: SDE = build.build(build.SDES, config.sde)
    denoiser = build.denoiser(config, shape, classes)
    weight = build.build(build.WEIGHTINGS, config.training.weight)
    generator = torch.Generator().manual_seed(0)
    t = build.build(build.TIMES, config.training.times)(sde, 2, generator)
    low, high = config.transform.low, config.transform.high
    x0, eps = low + (high - low) * torch.rand(2, *shape), torch.randn(2, *shape)
    label = {} if classes is None else {"label": torch.tensor([1, classes])}
    adam = torch.optim.Adam(denoiser.parameters(), lr=config.training.learning_rate, betas=tuple(config.training.betas))
    before = [p.detach().clone() for p in denoiser.parameters()]
    loss = dsm_loss(denoiser, sde, x0, t, eps, weight=weight, **label).mean()
    loss.backward()
    adam.step()
    assert bool(loss.isfinite())
    assert all(bool(p.isfinite().all()) for p in denoiser.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))


@variants
def test_every_variant_has_a_sampler_and_a_grid_within_its_path(file: str, variant: str) -> None:
    config = config_of(file, variant)
    sde: SDE = build.build(build.SDES, config.sde)
    build.build(build.SOLVERS, config.sampling.solver)
    ts = build.build(build.GRIDS, config.sampling.grid, sde=sde, steps=config.sampling.steps)
    assert ts[0] == sde.t_max and sde.t_min <= ts[-1] < 2e-3 + 0.01 * sde.t_max
    assert bool((ts.diff() < 0).all()) and len(ts) in (config.sampling.steps, config.sampling.steps + 1)
    assert config.training.images > 0 and config.training.images % config.training.batch == 0
    json.loads(config.to_json())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.original)
def test_parameters_are_those_of_the_original(row: Any) -> None:
    assert count(network(row)) == (row.theirs + row.more, row.frozen)


# Of score_sde_pytorch, by the switches of its own configuration files.
SCORE_SDE_ROWS = [row for row in ROWS if row.original.startswith("score_sde_pytorch: ")]


@pytest.mark.parametrize("row", SCORE_SDE_ROWS, ids=lambda row: row.original)
def test_configurations_are_those_of_score_sde(row: Any) -> None:
    name = row.original.removeprefix("score_sde_pytorch: ")
    assert name in SCORE_SDE
    published = recipe({}, config=name)
    config = config_of(*row.config.split(":"))
    config.net.update(row.given)
    made = network(row)
    assert type(made) is published.network
    assert made.settings == {**made.settings, **published.settings}
    assert (config.transform.low, config.transform.high) == (published.low, published.high)
    sde = build.build(build.SDES, config.sde)
    t = torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    assert_close(sde.log_snr(t), published.sde.log_snr(t), rtol=1e-12, atol=0)
    told = build.build(build.PRECONDITIONS, config.precondition, sde=sde)
    level = torch.tensor([0.011, 0.2, 1.7, 40.0], dtype=torch.float64)
    for alpha, sigma in ((torch.ones_like(level), level), (1 / torch.hypot(torch.ones_like(level), level), None)):
        sigma = level * alpha if sigma is None else sigma
        for ours_, theirs_ in zip(told(alpha, sigma), published.precondition(alpha, sigma), strict=True):
            assert_close(ours_, theirs_, rtol=1e-12, atol=0)


def told_of(**keywords: Any) -> Told:
    config = cifar10.get_config("ddpmpp")
    config.net.width = 4
    config.precondition = build.spec(build.PRECONDITIONS, "told", **keywords)
    found = built(config)[1].precondition
    assert isinstance(found, Told)
    return found


def test_told_goes_along_the_runs_own_path_or_another() -> None:
    own, other = told_of(scale=999.0), told_of(scale=999.0, along="ve:sigma_min=0.02,sigma_max=100.0")
    assert own.sde == VPSDE(t_min=1e-5)
    assert other.sde == VESDE(0.02, 100.0)
    with pytest.raises(ValueError, match="expected predicts"):
        told_of(predicts="epsilon")
    with pytest.raises(ValueError, match="expected one of vp"):
        told_of(along="vq")


def test_scaled_score_is_in_the_table() -> None:
    assert build.build(build.PRECONDITIONS, {"name": "scaled_score"}) is precondition.scaled_score


def test_ends_of_vdm_are_its_log_snrs() -> None:
    sde = built(cifar10.get_config("vdm"))[0]
    # The times have three and four digits, and the log-SNR about -1 and -14 of slope in log t there.
    assert float(sde.log_snr(sde.t_min)) == pytest.approx(13.3, abs=0.01)
    assert float(sde.log_snr(sde.t_max)) == pytest.approx(-5.0, abs=0.01)


def test_sampling_takes_the_published_number_of_evaluations() -> None:
    """18 steps of EDM are 17 of Heun and one of Euler to zero, which is the last denoising (Karras et al. 2022)."""
    config = cifar10.get_config("edm")
    assert 2 * config.sampling.steps + config.sampling.denoise == 35
    for variant in ("ddpm", "ddpmpp_vp", "ddpmpp_subvp"):
        config = cifar10.get_config(variant)
        ts = build.build(build.GRIDS, config.sampling.grid, sde=built(config)[0], steps=config.sampling.steps)
        expected = torch.linspace(1, 1e-3, 1000, dtype=torch.float64)  # theirs, on VP and sub-VP
        assert_close(ts, expected, rtol=1e-12, atol=1e-15)
