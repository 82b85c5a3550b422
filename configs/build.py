"""The one file that knows names: tables of constructors, and the specs of what was constructed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from torch import Tensor, nn

from scorefield import likelihood, models, sde_lib, solvers
from scorefield.configs.specs import Table, build, name_of, parse, spec, written
from scorefield.models import precondition
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.solvers import grids
from scorefield.solvers.variables import SoftClippedLogSNR
from scorefield.training import data, times, weighting

__all__ = [
    "DATASETS", "DEQUANTISATIONS", "DIVERGENCES", "GRIDS", "NETWORKS", "PRECONDITIONS", "SDES", "SOLVERS", "TIMES",
    "WEIGHTINGS", "Table", "build", "denoiser", "described", "described_precondition", "name_of", "network",
    "parse", "spec", "written",
]  # fmt: skip


def _itself(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """A constructor, without arguments, of the function."""
    return lambda: function


def _told(
    sde: sde_lib.SDE,
    predicts: str = "eps",
    unit: str = "time",
    scale: float = 1.0,
    shift: float = 0.0,
    whole: bool = False,
    along: str = "",
) -> precondition.TimeConditioned:
    """Told the noise on the run's own path, or on another one, written as on a command line."""
    return precondition.TimeConditioned(
        build(SDES, parse(along)) if along else sde, predicts, unit, scale, shift, whole
    )


def _adams_moulton(
    order: int = 3, low: float = 0.02, high: float = 10.0, spread: float = 0.5, pace: float = 0.0
) -> solvers.Solver:
    return solvers.AdamsMoulton(order, SoftClippedLogSNR(low, high, spread, pace))


def _importance(samples: int = 8) -> likelihood.Uniform:
    return likelihood.Uniform(samples)


def _predictor_corrector(
    predictor: str = "euler_maruyama",
    snr: float = 0.16,
    steps: int = 1,
    norms: str = "expected",
    order: str = "predict_first",
) -> solvers.Solver:
    corrector = solvers.AnnealedLangevin(snr=snr, steps=steps, norms=norms)
    return solvers.PredictorCorrector(build(SOLVERS, parse(predictor)), corrector, order)


def _churn(
    solver: str = "heun:clock=sigma", amount: float = 40.0, low: float = 0.05, high: float = 50.0, noise: float = 1.003
) -> solvers.Solver:
    return solvers.Churn(amount, low, high, noise, build(SOLVERS, parse(solver)))


def _optimal(sde: sde_lib.SDE, steps: int, workdir: Path, file: str = "grid.json") -> Tensor:
    """The grid measured by `--mode=grid`."""
    path = workdir / file
    if not path.is_file():
        raise ValueError(f"expected a measured grid in {path}: measure one with --mode=grid --workdir={workdir}")
    try:
        found = json.loads(path.read_text())
        measured = grids.StepDensity(tuple(map(float, found["log_snr"])), tuple(map(float, found["density"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not read ({error!r}): measure it again with --mode=grid") from None
    return grids.optimal(sde, steps, measured)


SDES: Table = {
    "vp": sde_lib.VPSDE,
    "subvp": sde_lib.SubVPSDE,
    "ve": sde_lib.VESDE,
    "edm": sde_lib.EDMSDE,
    "cosine": sde_lib.CosineSDE,
    "flow": sde_lib.RectifiedSDE,
    "ddpm": sde_lib.DiscreteVPSDE,
}
NETWORKS: Table = {
    "unet": models.UNet,
    "ncsn": models.NCSN,
    "ncsnv2": models.NCSNv2,
    "ncsnpp": models.NCSNpp,
    "adm": models.ADM,
    "vdm": models.VDM,
    "dit": models.DiT,
    "mlp": models.MLP,
    "diffusers": DiffusersUNet,
}
PRECONDITIONS: Table = {
    "score": _itself(precondition.score),
    "scaled_score": _itself(precondition.scaled_score),
    "eps": _itself(precondition.eps),
    "x0": _itself(precondition.x0),
    "v": _itself(precondition.v),
    "flow": _itself(precondition.flow),
    "edm": precondition.edm,
    "told": _told,
}
WEIGHTINGS: Table = {
    "simple": _itself(weighting.simple),
    "ncsn": _itself(weighting.ncsn),
    "likelihood": _itself(weighting.likelihood),
    "elbo": _itself(weighting.elbo),
    "edm": weighting.edm,
    "min_snr": weighting.min_snr,
}
TIMES: Table = {
    "uniform": _itself(times.uniform),
    "stratified": _itself(times.stratified),
    "log_snr": _itself(times.log_snr),
    "log_normal": times.log_normal,
    "discrete": times.discrete,
}
DATASETS: Table = {
    "digits": data.digits,
    "mnist": data.mnist,
    "fashion_mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
    "celeba": data.celeba,
    "imagenet": data.imagenet,
    "folder": data.folder,
    "archive": data.archive,
    "shards": data.shards,
    "huggingface": data.huggingface,
    "array": data.array,
    "toy": data.toy,
}
SOLVERS: Table = {
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
    "stochastic_adams": solvers.SASolver,
    "churn": _churn,
    "adaptive_sde": solvers.AdaptiveSDE,
    "langevin": solvers.AnnealedLangevin,
    "consistent": solvers.ConsistentAnnealed,
    "pc": _predictor_corrector,
}
GRIDS: Table = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "log_snr": grids.log_snr,
    "saturated": grids.saturated,
    "geometric": grids.geometric,
    "karras": grids.karras,
    "leading": grids.leading,
    "trailing": grids.trailing,
    "linspace": grids.linspace,
    "sigmas": grids.sigmas,
    "optimal": _optimal,
}
DIVERGENCES: Table = {
    "exact": likelihood.Exact,
    "hutchinson": likelihood.Hutchinson,
    "hutchpp": likelihood.HutchPlusPlus,
}
DEQUANTISATIONS: Table = {
    "uniform": likelihood.Uniform,
    "importance": _importance,
    "truncated_normal": likelihood.TruncatedNormal,
    "variational": likelihood.Variational,
}


def denoiser(config: ml_collections.ConfigDict, shape: tuple[int, ...], num_classes: int | None) -> models.Denoiser:
    """The untrained denoiser of a configuration, for data of one shape (*D), with classes or without."""
    sde = build(SDES, config.sde)
    return models.Denoiser(network(config, shape, num_classes), build(PRECONDITIONS, config.precondition, sde=sde))


def network(config: ml_collections.ConfigDict, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    """Its untrained network."""
    built: nn.Module = build(NETWORKS, config.net, channels=shape[0], shape=shape, num_classes=num_classes)
    return built


def described(sde: sde_lib.SDE) -> ml_collections.ConfigDict:
    """The spec of a path."""
    keywords = {field.name: getattr(sde, field.name) for field in dataclasses.fields(sde)}  # type: ignore[arg-type]
    if isinstance(sde, sde_lib.DiscreteVPSDE):
        keywords["betas"] = sde.named
    return spec(SDES, name_of(SDES, type(sde)), **keywords)


def described_precondition(given: precondition.Precondition, sde: sde_lib.SDE) -> ml_collections.ConfigDict:
    """The spec of a parameterisation, for a run along a path."""
    for name, function in precondition.PREDICTS.items():
        if given is function:
            return spec(PRECONDITIONS, name)
    if isinstance(given, precondition.EDM):
        return spec(PRECONDITIONS, "edm", sigma_data=given.sigma_data)
    if isinstance(given, precondition.TimeConditioned) and isinstance(given.sde, sde_lib.SDE):
        told = {key: getattr(given, key) for key in ("predicts", "unit", "scale", "shift", "whole")}
        return spec(PRECONDITIONS, "told", **told, along="" if given.sde == sde else written(described(given.sde)))
    raise ValueError(f"expected a parameterisation of models.precondition, got {given}")
