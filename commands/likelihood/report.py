"""What is said of a likelihood: every number with its kind, its errors, and what decided it."""

import importlib.metadata
import math
import platform
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from scorefield import likelihood
from scorefield.commands.likelihood.estimates import MEANINGS, Columns, Task
from scorefield.likelihood import mean_and_error

MOMENTS = 10_000  # images that p_T is estimated from


def estimate(
    task: Task, name: str, unit: str, values: Tensor, columns: Columns, found: dict[str, Any]
) -> dict[str, Any]:
    """What an estimator found, and what its number means."""
    mean, error = mean_and_error(values)
    certain = math.isfinite(error)
    own = columns.get(f"{name}_error")
    estimate: dict[str, Any] = {
        "kind": MEANINGS[name],
        unit: mean,
        "standard_error": error if certain else None,
        "interval_95": [mean - 1.96 * error, mean + 1.96 * error] if certain else None,
        "n": len(values),
        "error_of_a_value": None if own is None else float(own.square().mean().sqrt()) / task.unit,
        "nfe": float(columns[f"{name}_nfe"].mean()),
        "nfe_max": float(columns[f"{name}_nfe_max"].max()),
        "seconds_an_image": float(columns[f"{name}_seconds"].mean()),
    }
    if name != "ode":
        terms = {
            part: float(columns[f"{name}_{part}"].mean()) / -task.unit
            for part in ("prior", "diffusion", "reconstruction")
        }
        return {
            **estimate,
            "parts": terms,
            "draws": task.draws,
            **({"chain": task.chain, "variance": task.variance} if name == "vlb" else {}),
        }
    if task.dequantisation is not None:
        samples = task.dequantisation.samples
        estimate["kind"] += (
            f", a lower bound by dequantisation with {samples} draw{'s' if samples > 1 else ''} an image"
        )
    return {**estimate, "solver": str(task.solver), "divergence": str(task.divergence), **found}


def prior_kl(task: Task) -> dict[str, float]:
    """How far the data's p_T is from the prior: estimated, and bounded from above."""
    x0 = task.clean(slice(0, MOMENTS)).cpu()
    prior = task.prior
    alpha, sigma = (float(scale) for scale in task.run.sde.scales(task.run.sde.t_max))
    shift, ratio = (alpha * x0.double() - prior.mean) / prior.std, sigma / prior.std
    bound = ((shift.square() + ratio.square() - 1) / 2 - ratio.log()).flatten(1).sum(1).mean()
    return {"estimate": likelihood.prior_kl(task.run.sde, x0, prior) / task.unit, "bound": float(bound) / task.unit}


def told_of(estimates: dict[str, dict[str, Any]], unit: str) -> dict[str, Any]:
    """The lines to print."""
    lines: dict[str, Any] = {}
    for name, found in estimates.items():
        error = found["standard_error"]
        sure = f"{found[unit]:.4f} +- {math.nan if error is None else error:.4f}"
        lines[f"{name}, {unit}"] = f"{sure} (n = {found['n']}, {found['nfe']:g} evaluations)"
    ode = estimates.get("ode", {})
    if "tolerance" in ode:
        met = "" if ode["tolerance_met"] else ", which is NOT met"
        lines["solver's error"] = (
            f"{ode['solver_error']:.1e} bits/dim in the worst of {ode['pilots']} pilots, of the {ode['tolerance']:g} "
            f"allowed{met}"
        )
        if "others" in ode:
            lines["and"] = f"{ode['solver_error_of_others']:.1e} in the worst of {ode['others']} others"
    elif ode.get("change_from_half_the_steps") is not None:
        lines["change from half the steps"] = f"{ode['change_from_half_the_steps']:+.4f}"
    return lines


def versions() -> dict[str, str]:
    """Of what the numbers were computed with."""
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
