"""How many steps of a solver a number of network evaluations pays for."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.generate import Guide, batch_sampler
from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.models import CountCalls
from scorefield.sde_lib.denoiser import Cond
from scorefield.solvers import Solver

Fitting = Callable[[Mapping[str, Any]], dict[str, Any] | None]


def fitting(run: Run, budget: int, guide: Guide, cond: Cond) -> Fitting:
    """A function that adds to a setting the most steps within the budget; None where one step is too much.

    Network evaluations are counted, with a denoiser of zeros for one sample. Guidance that needs two counts twice.

    Args:
        run: the run.
        budget: network evaluations of a sample.
        guide: see `generate`.
        cond: conditioning with a row for each sample.
    """
    row = {key: value[:1] for key, value in cond.items()}

    def fitted(sampling: Mapping[str, Any]) -> dict[str, Any] | None:
        def evaluations(steps: int) -> int:
            counted = CountCalls(_zeros)
            chosen = {**sampling, "steps": steps}
            with torch.no_grad():
                batch_sampler(run, counted, sampling=chosen, seed=0, cond=row, guide=guide)(0, 1, None)
            return counted.samples

        most = budget + 1  # of grids that count times, one more than their steps
        steps = max(1, most * budget // max(evaluations(most), 1))
        while steps > 1 and evaluations(steps) > budget:
            steps -= 1
        while steps < most and evaluations(steps + 1) <= budget:
            steps += 1
        return {**sampling, "steps": steps} if evaluations(steps) <= budget else None

    return fitted


def within(run: Run, budget: int | None, sampling: Mapping[str, Any], guide: Guide, cond: Cond) -> dict[str, Any]:
    """The setting with the most steps within --budget, or as it is without one; a tuned setting keeps its steps.

    Args:
        run: the run.
        budget: network evaluations of a sample.
        sampling: see `sampling_of`.
        guide: see `generate`.
        cond: conditioning with a row for each sample.

    Raises:
        ValueError: if one step takes more, or for a solver that chooses its own steps.
    """
    if budget is None or "tuned" in sampling:
        return dict(sampling)
    solver: Solver = build.build(build.SOLVERS, sampling["solver"])
    name = build.unparse(sampling["solver"])
    if not solver.fixed_grid:
        raise ValueError(f"expected no --budget for {name}, whose tolerances decide its evaluations, got {budget}")
    fitted = fitting(run, budget, guide, cond)(sampling)
    if fitted is None:
        last = ", or --nodenoise" if sampling["denoise"] else ""
        raise ValueError(f"expected --budget for one step of {name} or more, got {budget}: take a larger one{last}")
    return fitted


def check_budget(budget: object, steps: object) -> None:
    """Raises ValueError if both are given."""
    if budget and steps:
        raise ValueError("expected --steps or --budget, got both: leave one out")


def _zeros(x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
    return torch.zeros_like(x)
