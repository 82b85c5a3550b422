"""The report of a likelihood: each number with its meaning, its errors, and the settings that decided it."""

import importlib.metadata
import math
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from scorefield.commands.progress_bar import Bar, progress_bar
from scorefield.likelihood import ImageScorer, mean_and_error, prior_kl
from scorefield.likelihood.columns import Columns
from scorefield.likelihood.dataset import DatasetScorer
from scorefield.likelihood.image_dataset import PARTS

PRIOR_SAMPLES = 10_000  # from which KL(p_T || prior) is estimated
MEANINGS = {
    "ode": "the probability flow's own log-likelihood",
    "dsm": "the denoising-score-matching bound, of uniformly dequantised data: no more than the log-likelihood of the "
    "SDE model that ends at t_min with a Gaussian",
    "vlb": "DDPM's variational bound: no more than the log-likelihood of its chain of Gaussian steps",
    "elbo": "VDM's continuous-time ELBO: no more than the log-likelihood of the SDE model that ends at t_min with a "
    "decoder",
}


def estimates_of(
    scorer: DatasetScorer, names: Sequence[str], unit: str, columns: Columns, ode_facts: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """For each estimator its number, the number's meaning and its errors.

    Raises:
        ValueError: if a number is not finite.
    """
    estimates = {}
    for name in names:
        estimates[name] = _estimate(scorer, name, unit, columns)
        if name == "ode":
            estimates[name] |= {
                "solver": str(scorer.plan.solver if scorer.plan else scorer.solver),
                "divergence": str(scorer.divergence),
                **ode_facts,
            }
        if not math.isfinite(estimates[name][unit]):
            raise ValueError(
                f"expected a finite likelihood by {name}, got {estimates[name][unit]}: take more --steps, or "
                "--solver=adaptive"
            )
    return estimates


def _estimate(scorer: DatasetScorer, name: str, unit: str, columns: Columns) -> dict[str, Any]:
    values, value_error = -columns[name] / scorer.unit, columns.get(f"{name}_error")
    mean, error = mean_and_error(values)
    known = math.isfinite(error)
    estimate: dict[str, Any] = {
        "kind": MEANINGS[name],
        unit: mean,
        "standard_error": error if known else None,
        "interval_95": [mean - 1.96 * error, mean + 1.96 * error] if known else None,
        "n": len(values),
        "error_of_a_value": None if value_error is None else float(value_error.square().mean().sqrt()) / scorer.unit,
        "nfe": float(columns[f"{name}_nfe"].mean()),
        "nfe_max": float(columns[f"{name}_nfe_max"].max()),
        "seconds_an_image": float(columns[f"{name}_seconds"].mean()),
    }
    if isinstance(scorer, ImageScorer):
        estimate |= _through_autoencoder(scorer, name, unit, columns)
    elif name != "ode":
        parts = [f"{name}_{part}" for part in ("prior", "diffusion", "reconstruction", "code")]
        known_parts = {part.partition("_")[2]: columns[part] for part in parts if part in columns}
        estimate["parts"] = {part: float(value.mean()) / -scorer.unit for part, value in known_parts.items()}
    elif scorer.levels is not None:
        samples = scorer.dequantisation.samples
        estimate["kind"] += (
            f", a lower bound by dequantisation with {samples} draw{'s' if samples > 1 else ''} an image"
        )
    if name != "ode":
        estimate["draws"] = scorer.draws
        estimate |= {"chain": scorer.chain, "variance": scorer.variance} if name == "vlb" else {}
    if name == "ode" and "ode_code" in columns:
        estimate["kind"] += ", given a latent code, less the code's divergence: a lower bound"
        estimate["parts"] = {"code": float(columns["ode_code"].mean()) / -scorer.unit}
    return estimate


def _through_autoencoder(scorer: ImageScorer, name: str, unit: str, columns: Columns) -> dict[str, Any]:
    """What is reported of an image's bound through an autoencoder."""
    parts = {part: mean_and_error(-columns[f"{name}_{part}"] / scorer.unit) for part in PARTS}
    count = scorer.code_draws
    found: dict[str, Any] = {
        "kind": f"a bound of the image through the autoencoder, no more than its log-likelihood, with {count} "
        f"draw{'s' if count > 1 else ''} of codes; the codes by {MEANINGS[name]}",
        "parts": {part: mean for part, (mean, _) in parts.items()},
        "parts_standard_error": {part: error if math.isfinite(error) else None for part, (_, error) in parts.items()},
        "code_draws": count,
        "pixels": scorer.pixels.family,
    }
    if f"{name}_importance" in columns:
        mean, error = mean_and_error(-columns[f"{name}_importance"] / scorer.unit)
        found["importance_weighted"] = {unit: mean, "standard_error": error if math.isfinite(error) else None}
    return found


def prior_kl_of(scorer: DatasetScorer, batch: int) -> dict[str, float]:
    """KL(p_T || prior) in the unit of the data: an estimate, and an upper bound, from the first 10,000 samples."""
    count, bounds = min(PRIOR_SAMPLES, len(scorer.stored)), list[float]()

    def batches(bar: Bar) -> Iterator[Tensor]:
        for start in range(0, count, batch):
            x0 = scorer.values(slice(start, min(start + batch, count))).cpu()
            bounds.append(float(scorer.prior.kl(scorer.sde, x0, scorer.sde.t_max).sum()))
            yield x0
            bar.skip(len(x0))

    with progress_bar("prior KL", count, unit="image") as bar:
        estimate = prior_kl(scorer.sde, batches(bar), scorer.prior)
    return {"estimate": estimate / scorer.unit, "bound": math.fsum(bounds) / count / scorer.unit}


def lines_of(estimates: dict[str, dict[str, Any]], unit: str, levels: int | None) -> dict[str, Any]:
    """The lines to print. `unit` is bits_per_dim or nats_per_dim, as in the names of the report's fields."""
    lines: dict[str, Any] = {}
    in_units = unit.replace("_per_", "/")
    for name, estimate in estimates.items():
        error = estimate["standard_error"]
        number = f"{estimate[unit]:.4f}" + ("" if error is None else f" +- {error:.4f}")  # none of one image
        uniform = "" if levels is None else f", uniform is {math.log2(levels):.2f}"
        lines[f"{name}, {unit}"] = (
            f"{number} (n = {estimate['n']}, {estimate['nfe']:g} evaluations; lower is better{uniform})"
        )
        if "parts_standard_error" in estimate:
            shown = [f"{part} {estimate['parts'][part]:.4f}" for part in PARTS]
            if error is not None:
                errors = estimate["parts_standard_error"].values()
                shown = [f"{text} +- {each:.4f}" for text, each in zip(shown, errors, strict=True)]
            lines[f"{name}, its parts"] = f"{', '.join(shown)} {in_units}"
        if "importance_weighted" in estimate:
            weighted = estimate["importance_weighted"]
            lines[f"{name}, importance-weighted"] = (
                f"{weighted[unit]:.4f} {in_units} ({estimate['code_draws']} draws of codes)"
            )
    ode = estimates.get("ode", {})
    if "tolerance" in ode:
        above, of = ode["above_tolerance"], f"the tolerance {ode['tolerance']:g}"
        lines["solver's error"] = (
            f"at most {ode['solver_error']:.1e} {in_units} by its estimate of each image, within {of}"
            if ode["tolerance_met"]
            else f"above {of} in {len(above)} of {ode['n']} images, at most {above[0]['solver_error']:.1e} {in_units} "
            f"in image {above[0]['image']}; the report names them"
        )
    elif ode.get("change_from_half_the_steps") is not None:
        lines["change from half the steps"] = f"{ode['change_from_half_the_steps']:+.4f} {in_units}"
    return lines


def versions() -> dict[str, str]:
    """Versions of the software that computed the numbers."""
    try:
        own = importlib.metadata.version("scorefield")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "scorefield": own,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }
