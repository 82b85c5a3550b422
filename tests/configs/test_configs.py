"""The configurations: each builds and trains, and its network and path are those of its paper."""

import importlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from torch import nn
from torch.testing import assert_close

from scorefield.commands.configuration import override
from scorefield.commands.train.command import train
from scorefield.configs import build, celeba, cifar10, digits, own
from scorefield.likelihood import GaussianDecoder
from scorefield.models import Denoiser, precondition
from scorefield.models.checkpoints.score_sde import spec_of
from scorefield.models.checkpoints.score_sde.published import SCORE_SDE
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import SDE, VESDE, VPSDE, LearnedVP, MultivariateVP, SubVPSDE
from scorefield.training import dsm_loss
from scorefield.training.adam import adam
from scorefield.training.objectives.elbo import elbo_loss
from scorefield.training.objectives.mulan import mulan_loss
from scorefield.training.times import IDODE, LogSNR

# What writes docs/networks.md is not installed.
TABLE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "networks.py"))
ROWS, count, network = (TABLE[name] for name in ("ROWS", "count", "network"))
FILES = ("cifar10", "celeba", "lsun", "celebahq", "ffhq", "imagenet", "imagenet32")
VARIANTS = [(file, v) for file in FILES for v in importlib.import_module(f"scorefield.configs.{file}").VARIANTS]
variants = pytest.mark.parametrize(("file", "variant"), VARIANTS, ids=[":".join(each) for each in VARIANTS])


def config_of(file: str, variant: str) -> ConfigDict:
    config: ConfigDict = importlib.import_module(f"scorefield.configs.{file}").get_config(variant)
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


def different_at_toy_size() -> list[tuple[str, str]]:
    """Of variants that are the same in all that `test_every_variant_trains_at_toy_size` takes, the first."""
    first = dict[str, tuple[str, str]]()
    for file, variant in VARIANTS:
        config = config_of(file, variant)
        toy(config)
        parts = [config[name] for name in ("net", "sde", "precondition", "transform")]
        parts += [config.training[name] for name in ("weight", "times", "loss", "labels", "betas")]
        first.setdefault("".join(map(str, parts)), (file, variant))
    return [*first.values()]


@pytest.mark.parametrize(("file", "variant"), (TOYS := different_at_toy_size()), ids=[":".join(each) for each in TOYS])
def test_every_variant_trains_at_toy_size(file: str, variant: str) -> None:
    config = config_of(file, variant)
    shape, classes = toy(config), 5 if config.training.labels else None
    if config.sde.name == "mulan":
        config.sde.update(width=8, encoder_width=4, encoder_blocks=1)
    torch.manual_seed(0)
    sde: SDE = build.build(build.SDES, config.sde, shape=shape)
    denoiser = build.denoiser(config, shape, classes)
    weight = build.build(build.WEIGHTINGS, config.training.weight)
    generator = torch.Generator().manual_seed(0)
    t = build.build(build.TIMES, config.training.times)(sde, 2, generator)
    low, high = config.transform.low, config.transform.high
    x0, eps = low + (high - low) * torch.rand(2, *shape), torch.randn(2, *shape)
    label = {} if classes is None else {"label": torch.tensor([1, classes])}
    adam = torch.optim.Adam(denoiser.parameters(), lr=config.training.learning_rate, betas=tuple(config.training.betas))
    before = [p.detach().clone() for p in denoiser.parameters()]
    if isinstance(sde, MultivariateVP):
        loss = mulan_loss(denoiser, sde, x0, t, eps, eps, torch.rand(2, sde.size), decoder=GaussianDecoder())[0].mean()
    elif config.training.loss == "elbo":
        loss = elbo_loss(denoiser, sde, x0, t, eps, eps, decoder=GaussianDecoder())[0].mean()
    else:
        loss = dsm_loss(denoiser, sde, x0, t, eps, weight=weight, **label).mean()
    loss.backward()
    adam.step()
    assert bool(loss.isfinite())
    assert all(bool(p.isfinite().all()) for p in denoiser.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))


@pytest.mark.parametrize("file", FILES)
def test_every_variant_has_a_sampler_and_a_grid_within_its_path(file: str) -> None:
    for name, variant in VARIANTS:
        if name == file:
            has_a_sampler_and_a_grid(config_of(file, variant))


def has_a_sampler_and_a_grid(config: ConfigDict) -> None:
    sde: SDE = build.build(build.SDES, config.sde, shape=(3, 2, 2))
    build.build(build.SOLVERS, config.sampling.solver)
    ts = build.build(build.GRIDS, config.sampling.grid, sde=sde, steps=config.sampling.steps)
    assert ts[0] == sde.t_max and sde.t_min <= ts[-1] < 2e-3 + 0.01 * sde.t_max
    assert bool((ts.diff() < 0).all()) and len(ts) in (config.sampling.steps, config.sampling.steps + 1)
    assert config.training.images > 0 and config.training.images % config.training.batch == 0
    json.loads(config.to_json())


def test_numbers_of_parameters_are_those_of_the_originals() -> None:
    assert {row.original: count(network(row)) for row in ROWS} == {
        row.original: (row.theirs + row.more, row.frozen) for row in ROWS
    }


# Those of score_sde_pytorch, by the settings in its configuration files.
SCORE_SDE_ROWS = [row for row in ROWS if row.original.startswith("score_sde_pytorch: ")]


@pytest.mark.parametrize("row", SCORE_SDE_ROWS, ids=lambda row: row.original)
def test_configurations_are_those_of_score_sde(row: Any) -> None:
    name = row.original.removeprefix("score_sde_pytorch: ")
    assert name in SCORE_SDE
    published = spec_of({}, config=name)
    config = config_of(*row.config.split(":"))
    config.net.update(row.given)
    made = network(row)
    assert type(made) is published.network
    assert made.settings == {**made.settings, **published.settings}
    assert (config.transform.low, config.transform.high) == (published.low, published.high)
    sde = build.build(build.SDES, config.sde)
    t = torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    assert_close(sde.log_snr(t), published.sde.log_snr(t), rtol=1e-12, atol=0)
    parameterisation = build.build(build.PRECONDITIONS, config.precondition, sde=sde)
    level = torch.tensor([0.011, 0.2, 1.7, 40.0], dtype=torch.float64)
    for alpha, sigma in ((torch.ones_like(level), level), (1 / torch.hypot(torch.ones_like(level), level), None)):
        sigma = level * alpha if sigma is None else sigma
        for ours_, theirs_ in zip(parameterisation(alpha, sigma), published.precondition(alpha, sigma), strict=True):
            assert_close(ours_, theirs_, rtol=1e-12, atol=0)


def told_of(**keywords: Any) -> TimeConditioned:
    config = cifar10.get_config("ddpmpp")
    config.net.width = 4
    config.precondition = build.spec(build.PRECONDITIONS, "time_conditioned", **keywords)
    part = built(config)[1].precondition
    assert isinstance(part, TimeConditioned)
    return part


def test_told_goes_along_the_runs_own_path_or_another() -> None:
    own, other = told_of(scale=999.0), told_of(scale=999.0, along="ve:sigma_min=0.02,sigma_max=100.0")
    assert own.sde == VPSDE(t_min=1e-5)
    assert other.sde == VESDE(0.02, 100.0)
    with pytest.raises(ValueError, match="expected predicts"):
        told_of(predicts="epsilon")
    with pytest.raises(ValueError, match=r"expected one of vp, .*subvp, "):
        told_of(along="vq")


def test_scaled_score_is_in_the_table() -> None:
    assert build.build(build.PRECONDITIONS, {"name": "scaled_score"}) is precondition.scaled_score


LEARNED = {"learnable_scalar": "linear", "learnable_nnet": "monotone"}
# google-research/vdm and thu-ml/i-DODE, configs/*.py: gamma_type, velocity, width, dropout, attention in every block.
VDMS = {
    "cifar10:vdm": ("learnable_scalar", False, 128, 0.1, False),
    "cifar10:vdm_aug": ("learnable_nnet", False, 256, 0.05, True),  # cifar10_aug_paper.py
    "imagenet32:vdm": ("learnable_scalar", False, 256, 0.1, False),
    "cifar10:idode": ("fixed", True, 128, 0.1, False),
    "imagenet32:idode": ("fixed", True, 256, 0.1, False),
    "imagenet32:idode_old": ("fixed", True, 256, 0.1, False),
}


@pytest.mark.parametrize("name", VDMS)
def test_variational_diffusion_is_as_published(name: str) -> None:
    gamma, velocity, width, dropout, attention = VDMS[name]
    config = config_of(*name.split(":"))
    net = config.net
    assert (net.name, net.blocks, tuple(net.fourier)) == ("vdm", 32, (7, 8))  # theirs is 2 pi 2^6 and 2 pi 2^7
    assert (net.width, net.dropout, net.attention) == (width, dropout, attention)
    sde: SDE = build.build(build.SDES, config.sde)
    high, half, low = sde.log_snr(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    assert (high, low) == pytest.approx((13.3, -5.0), rel=1e-6)
    assert gamma == "learnable_nnet" or half == pytest.approx((13.3 - 5.0) / 2, rel=1e-6)
    assert isinstance(sde, LearnedVP) == (gamma != "fixed")
    assert config.sde.interior == LEARNED.get(gamma, "linear")
    assert build.build(build.PRECONDITIONS, config.precondition) is (precondition.v if velocity else precondition.eps)
    times = build.build(build.TIMES, config.training.times)
    assert isinstance(times, IDODE) if velocity else config.training.times.name == "stratified"
    assert (config.training.loss, config.training.elbo_steps, config.training.decay_biases) == ("elbo", 0, False)
    assert (config.transform.dequantise, config.transform.flip) == (False, name == "cifar10:vdm_aug")


@pytest.mark.parametrize("file", ["cifar10", "imagenet32"])
def test_scoreflow_is_as_published(file: str) -> None:
    """score_flow: configs/subvp/*_ddpmpp_deep_continuous.py, with likelihood weighting and importance sampling."""
    config, flipped = config_of(file, "scoreflow"), file == "cifar10"
    net, sde = config.net, build.build(build.SDES, config.sde)
    assert (net.name, net.width, tuple(net.multipliers), net.blocks) == ("ncsnpp", 128, (1, 2, 2, 2), 8)
    assert net.dropout == (0.1 if flipped else 0.0) and config.transform.flip == flipped
    assert net == cifar10.get_config("ddpmpp_deep_subvp").net or not flipped
    assert sde == SubVPSDE(beta_min=0.1, beta_max=20.0, t_min=1e-2)
    assert isinstance(build.build(build.TIMES, config.training.times), LogSNR)
    assert (config.training.loss, config.training.weight.name) == ("dsm", "simple")


STEPS = {
    "cifar10:vdm": 10_000_000, "cifar10:vdm_aug": 100_000_000, "imagenet32:vdm": 10_000_000,
    "cifar10:idode": 6_000_000, "imagenet32:idode": 2_000_000, "imagenet32:idode_old": 2_000_000,
    "cifar10:scoreflow": 950_000, "imagenet32:scoreflow": 950_000,
}  # fmt: skip


def test_likelihood_models_train_as_long_as_published_on_the_set_that_was_reported() -> None:
    settings = {name: config_of(*name.split(":")) for name in STEPS}
    assert {name: c.training.images // c.training.batch for name, c in settings.items()} == STEPS
    versions = {name: c.data.version for name, c in settings.items() if name.startswith("imagenet32")}
    assert versions == {name: "new" if name == "imagenet32:idode" else "old" for name in versions}


def test_sampling_takes_the_published_number_of_evaluations() -> None:
    """18 steps of EDM are 17 of Heun and one of Euler to zero, which is the last denoising (Karras et al. 2022)."""
    config = cifar10.get_config("edm")
    assert 2 * config.sampling.steps + config.sampling.denoise == 35
    for variant in ("ddpm", "ddpmpp_vp", "ddpmpp_subvp"):
        config = cifar10.get_config(variant)
        ts = build.build(build.GRIDS, config.sampling.grid, sde=built(config)[0], steps=config.sampling.steps)
        expected = torch.linspace(1, 1e-3, 1000, dtype=torch.float64)  # theirs, on VP and sub-VP
        assert_close(ts, expected, rtol=1e-12, atol=1e-15)


OTHERS = {
    "digits": ("vp", "ve", "subvp", "edm", "cosine", "flow", "ncsn", "vdm", "mulan"),
    "mnist": ("vp", "ve", "subvp", "edm", "cosine", "flow", "vdm", "vdm_learned", "scoreflow", "idode"),
    "fashion_mnist": ("vp",),
    "own": ("folder", "ddpm"),
}
EVERY = {**{file: tuple(v for name, v in VARIANTS if name == file) for file in FILES}, **OTHERS}


@pytest.mark.parametrize("file", OTHERS)
def test_every_small_variant_builds(file: str) -> None:
    for variant in OTHERS[file]:
        config = config_of(file, variant)
        own.fill(config, own.preset(2, (1, 8, 8)))
        if config.precondition.name == "levels":
            config.precondition.probabilities = (0.5, 0.5)
        sde = build.build(build.SDES, config.sde, shape=(1, 8, 8))
        assert 0 <= sde.t_min < sde.t_max
        build.denoiser(config, (1, 8, 8), 10)
        for table, spec in ((build.WEIGHTINGS, "weight"), (build.TIMES, "times")):
            build.build(table, config.training[spec])
        build.build(build.SOLVERS, config.sampling.solver)
        build.build(build.GRIDS, config.sampling.grid, sde=sde, steps=3)


def spoilt(config: ConfigDict) -> None:
    """Every value of a configuration, however deep, made another."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            spoilt(config[key])
        else:
            with config.ignore_type():
                config[key] = "spoilt"


@pytest.mark.parametrize("file", EVERY)
def test_a_configuration_that_is_changed_does_not_change_the_next(file: str) -> None:
    for variant in EVERY[file]:
        first = config_of(file, variant)
        before = first.to_json()
        spoilt(first)
        assert config_of(file, variant).to_json() == before


@pytest.mark.parametrize(
    ("table", "name", "key", "word", "value"),
    [
        ("DATASETS", "celeba", "root", "/data", "/data"),
        ("NETWORKS", "unet", "head_width", "8", 8),
        ("SOLVERS", "langevin", "snr", "0.5", 0.5),
        ("DIVERGENCES", "hutchinson", "fresh", "true", True),
    ],
)
def test_what_is_none_by_default_can_be_overridden(table: str, name: str, key: str, word: str, value: Any) -> None:
    for keywords in ({}, {key: None}):
        config = ConfigDict({"part": build.spec(getattr(build, table), name, **keywords)})
        assert config.part[key] is None and build.unparse(config.part).count(f"{key}=None") == 1
        override(config, [f"--config.part.{key}={word}"])
        assert config.part[key] == value


# Optimisers


def test_adams_settings_are_those_of_its_paper_with_decay_apart_from_the_gradient() -> None:
    """Kingma and Ba 2015, Alg. 1; the decay as in Loshchilov and Hutter 2019, Alg. 2, with their schedule within it."""
    rate, (b1, b2), eps, decay = 0.1, (0.9, 0.99), 1e-2, 0.3
    module = nn.Linear(3, 1, bias=False).double()
    w = module.weight.detach().clone()
    optimizer = adam(module, rate, (b1, b2), eps, decay)
    m = v = torch.zeros_like(w)
    for step in (1, 2, 3):
        g = torch.tensor([[1e-3, -2.0, 0.5 * step]], dtype=torch.float64)
        module.weight.grad = g.clone()
        optimizer.step()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - rate * decay * w - rate * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
        assert_close(module.weight.detach(), w, rtol=1e-12, atol=0)


def small(images: int, **settings: Any) -> ConfigDict:
    config = digits.get_config("vp")
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.training.update(images=images, batch=32, sample_every=0, decay=False, **settings)
    config.sampling.steps = 2
    return config


def test_a_run_has_the_optimiser_of_its_configuration_and_keeps_it(tmp_path: Path) -> None:
    train(tmp_path, small(32, adam_eps=1e-3, weight_decay=0.01, betas=(0.8, 0.9)), device="cpu")
    saved = torch.load(tmp_path / "checkpoints" / "0000000032" / "state.pt", weights_only=True)
    (group,) = saved["optimizer"]["param_groups"]
    assert (group["eps"], group["weight_decay"], tuple(group["betas"])) == (1e-3, 0.01, (0.8, 0.9))
    with pytest.raises(ValueError, match=r"training\.weight_decay is 0\.01 there and 0\.0 here"):
        train(tmp_path, small(64, adam_eps=1e-3, betas=(0.8, 0.9)), device="cpu")


def test_a_run_has_muon_for_its_matrices_and_goes_on(tmp_path: Path) -> None:
    config = small(32, optimizer="muon", momentum=0.8)
    config.net.width = 16  # no narrower layer is a matrix to it
    train(tmp_path, config, device="cpu")
    saved = torch.load(tmp_path / "checkpoints" / "0000000032" / "state.pt", weights_only=True)
    groups = saved["optimizer"]["param_groups"]
    assert {group["matrices"]: group["momentum"] for group in groups} == {False: 0.8, True: 0.8}
    config.training.images = 64
    assert train(tmp_path, config, device="cpu")["images_this_time"] == 32


def test_a_run_from_before_there_was_a_choice_goes_on(tmp_path: Path) -> None:
    train(tmp_path, small(32), device="cpu")
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    for key in ("adam_eps", "weight_decay", "optimizer", "momentum"):
        del saved["config"]["training"][key]
    file.write_text(json.dumps(saved))
    assert train(tmp_path, small(64), device="cpu")["images"] == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adam_eps", 0.0),
        ("adam_eps", float("nan")),
        ("weight_decay", -0.01),
        ("optimizer", "sgd"),
        ("momentum", 1.0),
    ],
)
def test_an_optimiser_without_sense_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected training.{key}"):
        train(tmp_path / "run", small(32, **{key: value}), device="cpu")
    assert not (tmp_path / "run").exists()


# Of training: batch, learning rate, Adam's eps and decay of weights, warm-up in images, clipping, decay of the average.
NCSNV2 = (128, 1e-4, 1e-8, 0.0, 0, 0.0, 0.999)  # ncsnv2: configs/*.yml
SONG = (128, 2e-4, 1e-8, 0.0, 5_000 * 128, 1.0)  # score_sde_pytorch: configs/default_*_configs.py
LARGE = (64, 2e-4, 1e-8, 0.0, 5_000 * 64, 1.0, 0.999)
VDM = (128, 2e-4, 1e-8, 0.01, 100 * 128, 0.0, 0.9999)
HALF_MILLION, FIFTY_MILLION = (lambda batch: 0.5 ** (batch / 5e5)), (lambda batch: 0.5 ** (batch / 5e7))
OPTIMISERS = {
    "cifar10:ncsn": (128, 1e-3, 1e-8, 0.0, 0, 0.0, 0.0),
    "cifar10:ncsnv2": NCSNV2,
    "celeba:ncsnv2": NCSNV2,
    "lsun:bedroom_ncsnv2": NCSNV2,
    "lsun:church_ncsnv2": NCSNV2,
    "lsun:tower_ncsnv2": NCSNV2,
    "ffhq:ncsnv2_256": (32, 1e-4, 1e-3, 0.0, 0, 0.0, 0.999),
    "cifar10:ddpm": (*SONG, 0.9999),
    **{f"cifar10:{name}": (*SONG, 0.999) for name in ("ddpm_ve", "ncsnpp_ve", "ncsnpp_deep_ve")},
    **{f"cifar10:{name}": (*SONG, 0.9999) for name in ("ddpm_vp", "ddpmpp_vp", "ddpmpp_deep_vp", "ncsnpp_deep_vp")},
    **{f"cifar10:{name}": (*SONG, 0.9999) for name in ("ddpm_subvp", "ddpmpp_subvp", "ncsnpp_subvp")},
    "celeba:ncsnpp": (*SONG, 0.999),
    **{f"{each}ncsnpp": LARGE for each in ("lsun:bedroom_", "lsun:church_")},
    **{f"{each}:ncsnpp_256": LARGE for each in ("celebahq", "ffhq")},
    **{f"{each}:ncsnpp_1024": (8, 2e-4, 1e-8, 0.0, 5_000 * 8, 1.0, 0.9999) for each in ("celebahq", "ffhq")},
    "lsun:church_ddpm": (64, 2e-5, 1e-8, 0.0, 5_000 * 64, 1.0, 0.9999),
    "celeba:ddpm": (128, 2e-4, 1e-8, 0.0, 0, 1.0, 0.9999),  # ddim: configs/celeba.yml
    **{f"cifar10:{name}": (512, 1e-3, 1e-8, 0.0, 10**7, 0.0, HALF_MILLION(512)) for name in ("edm", "edm_ncsnpp")},
    "ffhq:edm_64": (256, 2e-4, 1e-8, 0.0, 10**7, 0.0, HALF_MILLION(256)),
    "imagenet:edm_64": (4096, 1e-4, 1e-8, 0.0, 10**7, 0.0, FIFTY_MILLION(4096)),
    "imagenet:adm_64": (2048, 3e-4, 1e-8, 0.0, 0, 0.0, 0.9999),
    "imagenet:adm_256": (256, 1e-4, 1e-8, 0.0, 0, 0.0, 0.9999),
    "imagenet:dit_xl": (256, 1e-4, 1e-8, 0.0, 0, 0.0, 0.9999),
    "cifar10:scoreflow": (*SONG, 0.9999),
    "imagenet32:scoreflow": (*SONG, 0.9999),
    # vdm and i-DODE: configs/*.py
    **{f"{file}:{name}": VDM for file in ("cifar10", "imagenet32") for name in ("vdm", "idode")},
    "cifar10:vdm_aug": (1024, 2e-4, 1e-8, 0.01, 100 * 1024, 0.0, 0.9999),
    "imagenet32:idode_old": (512, 2e-4, 1e-8, 0.01, 100 * 512, 0.0, 0.9999),
}


def test_configurations_optimise_as_published() -> None:
    keys = ("batch", "learning_rate", "adam_eps", "weight_decay", "warmup", "clip", "ema")
    settings = {name: config_of(*name.split(":")).training for name in OPTIMISERS}
    assert {name: tuple(part[key] for key in keys) for name, part in settings.items()} == OPTIMISERS
    betas = {name: tuple(part.betas) for name, part in settings.items()}
    assert betas == {name: (0.9, 0.99) if name in VDMS else (0.9, 0.999) for name in settings}


def test_ncsn_samples_with_the_step_of_its_code() -> None:
    """x + epsilon grad + sqrt(2 epsilon) z with epsilon = 2e-5; its paper's Alg. 1 halves both."""
    solver = cifar10.get_config("ncsn").sampling.solver
    assert (solver.step_size, solver.steps, solver.denoise) == (2 * 2e-5, 100, False)


def test_celeba_is_read_as_it_is_distributed_from_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in (1, 162_771, 182_638, 182_639):  # one of train, one of validation, two of test
        Image.new("RGB", (178, 218), (number % 256, 0, 0)).save(folder / f"{number:06d}.png")
    tests = {}
    for variant in celeba.VARIANTS:
        config = celeba.get_config(variant)
        config.data.root = str(tmp_path)
        read = build.build(build.DATASETS, config.data, split="train")
        assert (read.name, read.shape, len(read)) == ("celeba", (3, 64, 64), 1)
        tests[variant] = len(build.build(build.DATASETS, config.data, split="test"))
        config.data.size = 32
        assert build.build(build.DATASETS, config.data, split="train").shape == (3, 32, 32)
    # Song et al. 2021 are scored on the validation part, the others on the test part.
    assert tests == {"ncsnpp": 1, "ddpm": 2, "ncsnv2": 2}
