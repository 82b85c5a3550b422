"""The tables of names: every part that a configuration or a command line can name.

`--mode=list` prints them. Installed packages add names by entry points, and a name with a dot is imported: see
`configs.specs.Table`.
"""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from torch import Tensor, nn

from scorefield import likelihood, models, sde_lib, solvers
from scorefield.configs.specs import Table, build, find, modern, name_of, spec, unparse
from scorefield.configs.text import parse
from scorefield.models import conditioners, precondition
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.hyperparameters import settings_of
from scorefield.models.levels import Levels, Parameterisation
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.models.networks.code_encoder import CodeEncoder
from scorefield.models.networks.quantisers import FSQ, LFQ, Codebook, Quantiser
from scorefield.models.perceptual import LPIPS, LaplacianPyramid
from scorefield.solvers import grids
from scorefield.solvers.variables import SoftClippedLogSNR
from scorefield.training import data, times, weighting

__all__ = [
    "AUTOENCODERS", "CONDITIONERS", "DATASETS", "DEQUANTISATIONS", "DIVERGENCES", "GRIDS", "NETWORKS", "OPTIONAL",
    "PARTS", "PERCEPTUAL", "PRECONDITIONS", "QUANTISERS", "SDES", "SOLVERS", "TABLES", "TIMES", "WEIGHTINGS", "Table",
    "autoencoder", "autoencoder_spec", "build", "conditioning_keywords", "denoiser", "is_autoencoder", "label_required",
    "modern", "modern_config", "name_of", "network", "parse", "parts_of", "precondition_spec", "sde_spec", "spec",
    "unparse",
]  # fmt: skip


def _time_conditioned(
    sde: sde_lib.SDE,
    predicts: str = "eps",
    unit: str = "time",
    scale: float = 1.0,
    shift: float = 0.0,
    integer_timesteps: bool = False,
    along: str = "",
) -> precondition.TimeConditioned:
    """A network conditioned on the time of its path. `along` is the spec of another path than the run's."""
    return precondition.TimeConditioned(
        build(SDES, along) if along else sde, predicts, unit, scale, shift, integer_timesteps
    )


def _levels(cells: tuple[float, float], probabilities: tuple[float, ...] | None = None) -> Levels:
    """Mean and deviation of each pixel's level in the place of EDM's coefficients; the data gives the probabilities."""
    if probabilities is None:
        raise ValueError("expected the probabilities of the levels, got none: training counts them in integer data")
    return Levels(tuple(probabilities), cells)


def _mulan(
    shape: tuple[int, ...],
    low: float = -5.0,
    high: float = 13.3,
    size: int = 50,
    active: int = 15,
    width: int = 256,
    encoder_width: int = 32,
    encoder_blocks: int = 2,
) -> sde_lib.MultivariateVP:
    """A path with a noise level for each dimension that depends on a latent code (Sahoo et al. 2024)."""
    encoder = CodeEncoder(shape, size, encoder_width, encoder_blocks)
    return sde_lib.MultivariateVP(shape, low, high, size, active, width, encoder)


def _adams_moulton(
    order: int = 3, low: float = 0.02, high: float = 10.0, spread: float = 0.5, time_weight: float = 0.0
) -> solvers.Solver:
    """Implicit Adams steps in the soft-clipped log-SNR, for likelihoods."""
    return solvers.AdamsMoulton(order, SoftClippedLogSNR(low, high, spread, time_weight))


def _importance(samples: int = 8) -> likelihood.Uniform:
    """Uniform dequantisation, averaged over several draws inside the logarithm (Burda et al. 2016)."""
    return likelihood.Uniform(samples)


def _predictor_corrector(
    predictor: str = "euler_maruyama",
    snr: float = 0.16,
    steps: int = 1,
    norms: str = "expected",
    order: str = "predict_first",
) -> solvers.Solver:
    """A solver, and Langevin steps at each of its times (Song et al. 2021, Algorithms 2 and 3)."""
    corrector = solvers.AnnealedLangevin(snr=snr, steps=steps, norms=norms)
    return solvers.PredictorCorrector(build(SOLVERS, predictor), corrector, order)


def _churn(
    solver: str = "heun:variable=sigma",
    amount: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    noise: float = 1.003,
) -> solvers.Solver:
    """A deterministic solver with noise added before each step (Karras et al. 2022, Algorithm 2)."""
    return solvers.Churn(amount, low, high, noise, build(SOLVERS, solver))


def _vq(
    channels: int,
    quantiser: str = "codebook:size=512",
    code_channels: int = 3,
    width: int = 128,
    multipliers: tuple[float, ...] = (1, 2, 4),
    blocks: int = 2,
    attention: tuple[int, ...] = (),
    middle_attention: bool = True,
    features: int | None = None,
    code_convolutions: bool | None = None,
    groups: int = 32,
    smallest_group: int = 4,
) -> models.VQAutoencoder:
    """An autoencoder whose decoder reads quantised codes; `quantiser` is the spec of what quantises them."""
    return models.VQAutoencoder(
        channels, build(QUANTISERS, quantiser, width=code_channels), code_channels, width, multipliers, blocks,
        attention, middle_attention, features, code_convolutions, groups, smallest_group,
    )  # fmt: skip


def _no_distance() -> None:
    """No perceptual distance."""


def _optimal(sde: sde_lib.SDE, steps: int, workdir: Path, file: str = "grid.json") -> Tensor:
    """The grid that `--mode=grid` measured for this run."""
    path = workdir / file
    if not path.is_file():
        raise ValueError(f"expected a measured grid in {path}: measure one with --mode=grid --workdir={workdir}")
    try:
        content = json.loads(path.read_text())
        measured = grids.StepDensity(tuple(map(float, content["log_snr"])), tuple(map(float, content["density"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error!r}): measure it again with --mode=grid") from None
    return grids.optimal(sde, steps, measured)


SDES = Table(
    "sdes",
    {
        "vp": sde_lib.VPSDE,
        "subvp": sde_lib.SubVPSDE,
        "ve": sde_lib.VESDE,
        "edm": sde_lib.EDMSDE,
        "cosine": sde_lib.CosineSDE,
        "flow": sde_lib.RectifiedSDE,
        "ddpm": sde_lib.DiscreteVPSDE,
        "learned": sde_lib.LearnedVP,
        "frozen": sde_lib.FrozenVP,
        "mulan": _mulan,
    },
    base=sde_lib.SDE,
)
NETWORKS = Table(
    "networks",
    {
        "unet": models.UNet,
        "ncsn": models.NCSN,
        "ncsnv2": models.NCSNv2,
        "ncsnpp": models.NCSNpp,
        "adm": models.ADM,
        "vdm": models.VDM,
        "dit": models.DiT,
        "mlp": models.MLP,
        "diffusers": DiffusersUNet,
    },
    base=nn.Module,
)
CONDITIONERS = Table(
    "conditioners",
    {
        "class_tokens": conditioners.ClassTokens,
        "text": conditioners.TextTransformer,
        "boxes": conditioners.Boxes,
        "map": conditioners.SemanticMap,
        "low": conditioners.LowResolution,
        "masked": conditioners.MaskedImage,
    },
    base=conditioners.Conditioner,
)
PRECONDITIONS = Table(
    "preconditions",
    {**precondition.PREDICTS, "edm": precondition.edm, "levels": _levels, "time_conditioned": _time_conditioned},
    functions=True,
)
WEIGHTINGS = Table(
    "weightings",
    {
        "simple": weighting.simple,
        "ncsn": weighting.ncsn,
        "likelihood": weighting.likelihood,
        "elbo": weighting.elbo,
        "edm": weighting.edm,
        "min_snr": weighting.min_snr,
    },
    functions=True,
)
TIMES = Table(
    "times",
    {
        "uniform": times.uniform,
        "stratified": times.stratified,
        "log_snr": times.LogSNR,
        "scoreflow": times.LogSNR,
        "idode": times.IDODE,
        "measured": times.Measured,
        "log_normal": times.log_normal,
        "discrete": times.discrete,
    },
    functions=True,
)
DATASETS = Table(
    "datasets",
    {
        "digits": data.digits,
        "mnist": data.mnist,
        "fashion_mnist": data.fashion_mnist,
        "canvas": data.canvas,
        "cifar10": data.cifar10,
        "celeba": data.celeba,
        "imagenet": data.imagenet,
        "imagenet32": data.imagenet32,
        "folder": data.folder,
        "archive": data.archive,
        "shards": data.shards,
        "huggingface": data.huggingface,
        "array": data.array,
        "toy": data.toy,
    },
)
SOLVERS = Table(
    "solvers",
    {
        "ddim": solvers.DDIM,
        "euler": solvers.Euler,
        "midpoint": solvers.Midpoint,
        "heun": solvers.Heun,
        "rk4": solvers.RK4,
        "dpm": solvers.DPMSolver,
        "unipc": solvers.UniPC,
        "deis": solvers.DEIS,
        "adams": solvers.Adams,
        "adams_moulton": _adams_moulton,
        "belm": solvers.BELM,
        "adaptive": solvers.Adaptive,
        "ancestral": solvers.Ancestral,
        "euler_maruyama": solvers.EulerMaruyama,
        "reverse_diffusion": solvers.ReverseDiffusion,
        "stochastic_dpm": solvers.StochasticDPMSolver,
        "sa_solver": solvers.SASolver,
        "churn": _churn,
        "adaptive_sde": solvers.AdaptiveSDE,
        "langevin": solvers.AnnealedLangevin,
        "consistent": solvers.ConsistentAnnealed,
        "pc": _predictor_corrector,
    },
    base=solvers.Solver,
)
GRIDS = Table(
    "grids",
    {
        "uniform": grids.uniform,
        "quadratic": grids.quadratic,
        "log_snr": grids.log_snr,
        "soft_clipped": grids.soft_clipped,
        "geometric": grids.geometric,
        "karras": grids.karras,
        "leading": grids.leading,
        "trailing": grids.trailing,
        "linspace": grids.linspace,
        "sigmas": grids.sigmas,
        "optimal": _optimal,
    },
)
DIVERGENCES = Table(
    "divergences",
    {"exact": likelihood.Exact, "hutchinson": likelihood.Hutchinson, "hutchpp": likelihood.HutchPlusPlus},
)
DEQUANTISATIONS = Table(
    "dequantisations",
    {
        "uniform": likelihood.Uniform,
        "importance": _importance,
        "truncated_normal": likelihood.TruncatedNormal,
        "variational": likelihood.Variational,
    },
)
QUANTISERS = Table("quantisers", {"codebook": Codebook, "fsq": FSQ, "lfq": LFQ}, base=Quantiser)
AUTOENCODERS = Table(
    "autoencoders",
    {"kl": models.KLAutoencoder, "vq": _vq, "tiny": models.TinyAutoencoder},
    base=ImageAutoencoder,
)
PERCEPTUAL = Table("perceptual", {"laplacian": LaplacianPyramid, "lpips": LPIPS, "none": _no_distance})
# The specs in a configuration, by their keys.
PARTS = {
    "data": DATASETS,
    "sde": SDES,
    "net": NETWORKS,
    "conditioner": CONDITIONERS,
    "precondition": PRECONDITIONS,
    "training.weight": WEIGHTINGS,
    "training.times": TIMES,
    "sampling.solver": SOLVERS,
    "sampling.grid": GRIDS,
}
AUTOENCODER_PARTS = {"data": DATASETS, "net": AUTOENCODERS}
OPTIONAL = ("conditioner",)  # Parts that may be None.
IMAGE_READERS = ("folder", "archive", "shards", "huggingface")  # the data sets with all keywords of `Decoding`
TABLES = (*PARTS.values(), DIVERGENCES, DEQUANTISATIONS, AUTOENCODERS, QUANTISERS, PERCEPTUAL)


def is_autoencoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of an autoencoder: it has a group `loss`, and no path."""
    return "loss" in config


def parts_of(config: Mapping[str, Any]) -> dict[str, Table]:
    """The specs in a configuration, by their keys: of a denoiser, or of an autoencoder."""
    return AUTOENCODER_PARTS if is_autoencoder(config) else PARTS


def modern_config(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration as in config.json, with present names in place of old ones, and with keywords added since."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for key, table in parts_of(config).items():
        group, _, name = key.rpartition(".")
        place = config.get(group, {}) if group else config
        if place.get(name) is not None:
            place[name] = spec(table, _as_it_was(key, place[name]))
    return config


def _as_it_was(key: str, saved: Any) -> Any:
    """A part of a configuration, with what its absent keywords meant when it was saved complete."""
    if key != "data" or isinstance(saved, str):
        return saved
    was: dict[str, Any] = {}
    if "corrupt" in saved and saved.get("name") in IMAGE_READERS:
        # Images were read as the camera stored them, and captions not at all.
        was = {key: value for key, value in {"exif": False, "caption": "none"}.items() if key not in saved}
    if "label_key" in saved and "conditions" not in saved:
        was["conditions"] = False
    return {**saved, **was}


def conditioning_keywords(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What the conditioner of a configuration takes, by the denoiser's keywords; none where there is no conditioner."""
    chosen = config.get("conditioner")
    if chosen is None:
        return ()
    kind: Any = find(CONDITIONERS, chosen.name)
    keywords: tuple[str, ...] = kind.keywords
    return keywords


def denoiser(
    config: ml_collections.ConfigDict,
    shape: tuple[int, ...],
    num_classes: int | None,
    sde: sde_lib.SDE | None = None,
) -> models.Denoiser:
    """The untrained denoiser of a configuration, for samples of a shape (*D), with classes or without.

    The path is that of the configuration, or `sde`, where the run has built it already.
    """
    sde = sde or build(SDES, config.sde, shape=shape)
    cells = (config.transform.low, config.transform.high)
    parameterisation = build(PRECONDITIONS, config.precondition, sde=sde, cells=cells)
    inputs = getattr(parameterisation, "inputs", 1)
    code_size = sde.size if isinstance(sde, sde_lib.MultivariateVP) else None
    net = network(config, shape, num_classes, inputs, code_size)
    if isinstance(net, ConditionedNetwork):
        net.required = config.training.label_dropout == 0
    return models.Denoiser(net, parameterisation, label_required=label_required(config, num_classes))


def label_required(config: ml_collections.ConfigDict, num_classes: int | None) -> bool:
    """Whether the network is always given its class in training, so that it means nothing without one."""
    return num_classes is not None and config.training.label_dropout == 0


def network(
    config: ml_collections.ConfigDict,
    shape: tuple[int, ...],
    num_classes: int | None,
    inputs: int = 1,
    code_size: int | None = None,
) -> nn.Module:
    """The untrained network of a configuration, with its conditioner if it has one.

    Raises:
        ValueError: if the parameterisation shows the network several inputs, and it takes one; or if the path has a
            latent code, or the conditioner gives tokens or images, and it takes none.
    """
    takes = inspect.signature(find(NETWORKS, config.net.name)).parameters
    if code_size is not None and "code_size" not in takes:
        raise ValueError(
            f"expected a network that takes a code, for the path {config.sde.name}, got {config.net.name}: use unet, "
            "vdm or mlp"
        )
    if inputs > 1 and "inputs" not in takes:
        raise ValueError(
            f"expected a network that takes {inputs} inputs, for the parameterisation {config.precondition.name}, got "
            f"{config.net.name}: use unet or vdm"
        )
    sizes = {
        "channels": shape[0], "inputs": inputs, "shape": shape, "num_classes": num_classes, "code_size": code_size,
    }  # fmt: skip
    if (chosen := config.get("conditioner")) is None:
        built: nn.Module = build(NETWORKS, config.net, **sizes)
        return built
    conditioner: conditioners.Conditioner = build(CONDITIONERS, chosen, **sizes)
    if "label" in conditioner.keywords:  # the class reaches the network by its conditioner alone
        sizes["num_classes"] = None
    return ConditionedNetwork(build(NETWORKS, _conditioned(config, conditioner), **sizes), conditioner)


def _conditioned(config: ml_collections.ConfigDict, conditioner: conditioners.Conditioner) -> dict[str, Any]:
    """The spec of the network, with the width of the tokens and the channels of the images that it is given.

    Raises:
        ValueError: if it takes none, or was set to others.
    """
    name, by = config.net.name, config.conditioner.name
    takes, net = inspect.signature(find(NETWORKS, name)).parameters, dict(config.net)
    for key, what, value in (
        ("context", "context tokens", conditioner.context), ("concat", "images beside x", conditioner.concat),
    ):  # fmt: skip
        if value and key not in takes:
            use = ", ".join(each for each in NETWORKS.parts if key in inspect.signature(NETWORKS[each]).parameters)
            raise ValueError(f"expected a network that takes {what}, for the conditioner {by}, got {name}: use {use}")
        if value and (net.get(key) or value) != value:
            raise ValueError(
                f"expected net.{key}={value}, as the conditioner {by} gives it, got {net[key]}: leave it out"
            )
        net |= {key: value} if value else {}
    return net


def autoencoder(partial: str | Mapping[str, Any], channels: int) -> ImageAutoencoder:
    """The untrained autoencoder of a spec, as kl:code_channels=4 or vq:quantiser=codebook, for images of channels."""
    built: ImageAutoencoder = build(AUTOENCODERS, partial, channels=channels)
    return built


def autoencoder_spec(module: ImageAutoencoder) -> ml_collections.ConfigDict:
    """The spec of an autoencoder, from which `autoencoder` makes the same network."""
    settings = settings_of(module)
    del settings["channels"]
    if isinstance(module, models.VQAutoencoder):
        quantiser = settings_of(module.quantiser)
        quantiser.pop("width", None)
        name = name_of(QUANTISERS, type(module.quantiser))
        return spec(AUTOENCODERS, "vq", **{**settings, "quantiser": unparse({"name": name, **quantiser})})
    return spec(AUTOENCODERS, name_of(AUTOENCODERS, type(module)), **settings)


def sde_spec(sde: sde_lib.SDE) -> ml_collections.ConfigDict:
    """The spec of a path; of a learned one as it is now."""
    if isinstance(sde, sde_lib.LearnedVP):
        sde = sde.frozen()
    keywords = {field.name: getattr(sde, field.name) for field in dataclasses.fields(sde)}  # type: ignore[arg-type]
    if isinstance(sde, sde_lib.DiscreteVPSDE):
        keywords["betas"] = sde.named
    return spec(SDES, name_of(SDES, type(sde)), **keywords)


def precondition_spec(parameterisation: Parameterisation, sde: sde_lib.SDE) -> ml_collections.ConfigDict:
    """The spec of a parameterisation, for a run along a path.

    Raises:
        ValueError: if it is none of `models.precondition`.
    """
    for name, function in precondition.PREDICTS.items():
        if parameterisation is function:
            return spec(PRECONDITIONS, name)
    if isinstance(parameterisation, Levels):
        return spec(PRECONDITIONS, "levels", probabilities=parameterisation.probabilities)
    if isinstance(parameterisation, precondition.EDM):
        return spec(PRECONDITIONS, "edm", sigma_data=parameterisation.sigma_data)
    if isinstance(parameterisation, precondition.TimeConditioned) and isinstance(parameterisation.sde, sde_lib.SDE):
        keywords = {
            key: getattr(parameterisation, key) for key in ("predicts", "unit", "scale", "shift", "integer_timesteps")
        }
        along = "" if parameterisation.sde == sde else unparse(sde_spec(parameterisation.sde))
        return spec(PRECONDITIONS, "time_conditioned", **keywords, along=along)
    raise ValueError(f"expected a parameterisation of models.precondition, got {parameterisation}")
