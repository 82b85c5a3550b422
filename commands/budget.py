"""How many steps of a solver a number of network evaluations pays for."""

import functools
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

    Network evaluations are counted (`evaluations_of`). Guidance that needs two counts twice.

    Args:
        run: the run.
        budget: network evaluations of a sample.
        guide: see `generate`.
        cond: conditioning with a row for each sample.
    """

    def fitted(sampling: Mapping[str, Any]) -> dict[str, Any] | None:
        @functools.cache
        def evaluations(steps: int) -> int:
            return evaluations_of(run, {**sampling, "steps": steps}, guide, cond)

        most = budget + 1  # of grids that count times, one more than their steps
        steps = max(1, most * budget // max(evaluations(most), 1))
        while steps > 1 and evaluations(steps) > budget:
            steps -= 1
        while steps < most and evaluations(steps + 1) <= budget:
            steps += 1
        return {**sampling, "steps": steps} if evaluations(steps) <= budget else None

    return fitted


def evaluations_of(run: Run, sampling: Mapping[str, Any], guide: Guide, cond: Cond) -> int:
    """The network evaluations of a sample, counted with a denoiser of zeros; arguments as of `within`."""
    counted, row = CountCalls(_zeros), {key: value[:1] for key, value in cond.items()}
    with torch.no_grad():
        batch_sampler(run, counted, sampling=sampling, seed=0, cond=row, guide=guide)(0, 1, None)
    return counted.samples


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
        least = evaluations_of(run, {**sampling, "steps": 1}, guide, cond)
        last = " with the last denoising, which --nodenoise leaves out" if sampling["denoise"] else ""
        raise ValueError(f"expected --budget of at least {least} for one step of {name}{last}, got {budget}")
    return fitted


def check_budget(budget: object, steps: object) -> None:
    """Raises ValueError if both are given."""
    if budget and steps:
        raise ValueError("expected --steps or --budget, got both: leave one out")


def _zeros(x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
    return torch.zeros_like(x)
