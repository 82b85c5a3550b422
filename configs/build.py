"""The one file that knows names: tables of constructors, and how a configuration calls them.

A spec is a mapping with a `name` of its table and the constructor's keywords:  {"name": "vp", "beta_max": 15.0}.
On a command line it is written  vp:beta_max=15.0,t_min=0.001.
"""

import ast
import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from torch import Tensor

import likelihood
import models
import sde_lib
import solvers
from models import precondition
from models.adm import ADM
from models.dit import DiT
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from models.vdm import VDM
from solvers import grids
from solvers.clocks import Saturated
from training import data, times, weighting

Table = Mapping[str, Callable[..., Any]]


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
) -> precondition.Told:
    """Told the noise on the run's own path, or on another one, written as on a command line."""
    return precondition.Told(build(SDES, parse(along)) if along else sde, predicts, unit, scale, shift, whole)


def _adams_moulton(
    order: int = 3, low: float = 0.02, high: float = 10.0, spread: float = 0.5, pace: float = 0.0
) -> solvers.Solver:
    return solvers.AdamsMoulton(order, Saturated(low, high, spread, pace))


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
    "ncsnv2": NCSNv2,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "vdm": VDM,
    "dit": DiT,
    "mlp": models.MLP,
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
    "folder": data.folder,
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
    "stochastic_adams": solvers.StochasticAdams,
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

# What the data set or the caller decides, and a configuration therefore does not.
FROM_DATA = ("channels", "shape", "num_classes", "split", "sde", "workdir", "flow")


def spec(table: Table, name: str, **keywords: Any) -> ml_collections.ConfigDict:
    """A spec with every keyword of its constructor at its default or as given, so that each can be overridden."""
    parameters = _parameters(_find(table, name))
    defaults = {
        key: p.default
        for key, p in parameters.items()
        if key not in FROM_DATA and p.default is not inspect.Parameter.empty
    }
    _refuse_unknown(name, keywords, parameters)
    return ml_collections.ConfigDict({"name": name, **defaults, **keywords})


def parse(text: str) -> dict[str, Any]:
    """The spec written `name:key=value,key=value`; values are Python literals, or words.

    Raises:
        ValueError: if it is not written so.
    """
    name, _, rest = text.partition(":")
    call = f"f({rest})"
    try:
        parsed = ast.parse(call, mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            raise ValueError(rest)
        return {"name": name, **{str(keyword.arg): _literal(keyword.value) for keyword in parsed.keywords}}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"expected name:key=value,key=value, values with : or , in quotes or brackets, got {text!r}"
        ) from None


def written(spec: str | Mapping[str, Any]) -> str:
    """A spec as it is written on a command line."""
    if isinstance(spec, str):
        return spec
    keywords = ",".join(f"{key}={_plain(value)}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}:{keywords}" if keywords else str(spec["name"])


def build(table: Table, spec: Mapping[str, Any], **given: Any) -> Any:
    """The constructor's call that a spec describes; of what is `given`, it gets what it takes.

    Raises:
        ValueError: for an unknown name or keyword, with those that there are.
    """
    keywords = {str(key): _plain(value) for key, value in spec.items()}
    name = keywords.pop("name")
    constructor = _find(table, name)
    parameters = _parameters(constructor)
    _refuse_unknown(name, keywords, parameters)
    try:
        return constructor(**keywords, **{key: value for key, value in given.items() if key in parameters})
    except (TypeError, RuntimeError, ArithmeticError) as error:  # a word for a number, or a size that torch refuses
        raise ValueError(f"{name} cannot be made of {keywords}: {error}") from error


def denoiser(config: ml_collections.ConfigDict, shape: tuple[int, ...], num_classes: int | None) -> models.Denoiser:
    """The untrained denoiser of a configuration, for data of one shape (*D), with classes or without."""
    network = build(NETWORKS, config.net, channels=shape[0], shape=shape, num_classes=num_classes)
    sde = build(SDES, config.sde)
    return models.Denoiser(network, build(PRECONDITIONS, config.precondition, sde=sde))


def name_of(table: Table, constructor: Any) -> str:
    """The name under which a table has a constructor.

    Raises:
        ValueError: if it does not.
    """
    for name, candidate in table.items():
        if candidate is constructor:
            return name
    raise ValueError(f"expected one of {', '.join(table)}, got {getattr(constructor, '__name__', constructor)}")


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
    if isinstance(given, precondition.Told) and isinstance(given.sde, sde_lib.SDE):
        told = {key: getattr(given, key) for key in ("predicts", "unit", "scale", "shift", "whole")}
        return spec(PRECONDITIONS, "told", **told, along="" if given.sde == sde else written(described(given.sde)))
    raise ValueError(f"expected a parameterisation of models.precondition, got {given}")


def _find(table: Table, name: str) -> Callable[..., Any]:
    if name not in table:
        raise ValueError(f"expected one of {', '.join(table)}, got {name!r}{_perhaps(name, table)}")
    return table[name]


def _parameters(constructor: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(constructor).parameters


def _refuse_unknown(name: str, keywords: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    allowed = [key for key in parameters if key not in FROM_DATA]
    for key in keywords:
        if key not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no keywords"
            raise ValueError(f"{name} {takes}; got {key!r}{_perhaps(key, allowed)}")


def _perhaps(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return float(node.id) if node.id in ("nan", "inf") else node.id
    return ast.literal_eval(node)


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
