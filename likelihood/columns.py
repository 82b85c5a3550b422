"""What a scorer gives for each sample of a slice: columns, (B,), by their names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.likelihood.density import Density
from scorefield.likelihood.dequantisation import importance_bound
from scorefield.sde_lib.broadcast import expand

Columns = dict[str, Tensor]  # of a value for each sample


def of_bound(name: str, density: Density, log_q: Tensor | float = 0.0, *, details: bool = False) -> Columns:
    """The columns of a bound: its value in nats under its name, its parts, its error, and the evaluations.

    Args:
        name: of the bound.
        density: its value.
        log_q: log q(x | k) in nats, (B,), where integers were dequantised: the value is less this.
        details: also what each dimension adds to the value, (B, *D), and the errors of the network, (B, K).
    """
    columns = {name: density.log_prob.double().cpu() - log_q}
    columns |= {f"{name}_{part}": value.double().cpu() for part, value in density.parts.items()}
    if density.std_error is not None:
        columns[f"{name}_error"] = density.std_error.double().cpu()
    if details and density.each is not None and density.errors is not None:
        each = density.each.double().cpu()
        columns[f"{name}_each"] = each - expand(log_q, each) / each[0].numel()
        columns[f"{name}_errors"] = density.errors.double().cpu().T
    return columns | _evaluations(name, density.nfe, math.ceil(density.nfe), len(density.log_prob))


def of_flow(weights: Sequence[Tensor], densities: Sequence[Density], latent: Tensor, code: Tensor | None) -> Columns:
    """The columns of the flow: "ode", the errors of its probes and of its solver, its evaluations, and "latent".

    Args:
        weights: log p(x_i) - log q(x_i | k) of each draw of dequantisation, in nats, (B,) each.
        densities: of these draws.
        latent: of the first draw, (B, *D).
        code: KL of the latent codes in nats, (B,), for a path that has them.
    """
    columns = {"ode": importance_bound(torch.stack(list(weights))), "latent": latent}
    if code is not None:
        columns["ode_code"] = -code.double().cpu()
        columns["ode"] = columns["ode"] + columns["ode_code"]
    errors = [density.std_error.double().cpu() for density in densities if density.std_error is not None]
    if len(errors) == len(densities):
        columns["ode_error"] = torch.stack(errors).square().mean(0).sqrt()
    solver_errors = [density.solver_error.double().cpu() for density in densities if density.solver_error is not None]
    if len(solver_errors) == len(densities):
        columns["ode_solver_error"] = torch.stack(solver_errors).amax(0)
    nfe_max = max(density.nfe_max or 0 for density in densities)
    return columns | _evaluations("ode", sum(each.nfe for each in densities), nfe_max, len(weights[0]))


def _evaluations(name: str, nfe: float, nfe_max: int, count: int) -> Columns:
    return {
        f"{name}_nfe": torch.full((count,), nfe, dtype=torch.float64),
        f"{name}_nfe_max": torch.full((count,), float(nfe_max), dtype=torch.float64),
    }
