"""The most steps of a solver within a number of network evaluations."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.generate import Guide, batch_sampler
from scorefield.commands.generate import grid as grid_of
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
        grid_of(run, {**sampling, "steps": 2})  # refuses a wrong spec

        @functools.cache
        def cost(steps: int) -> int:
            chosen = {**sampling, "steps": steps}
            return evaluations_of(run, chosen, guide, cond, budget) if _is_possible(run, chosen) else budget + 1

        # Some grids count times and begin at 2, and some costs do not rise at every step: always try two steps ahead.
        steps, best = 0, next((n for n in (2, 1) if cost(n) <= budget), 0)
        while best > steps:
            steps = best
            ahead = max(2, (budget - cost(steps)) * steps // cost(steps))
            further = (steps + (ahead >> halvings) for halvings in range(ahead.bit_length()))
            best = next((n for n in further if n <= budget + 1 and cost(n) <= budget), steps)
        return {**sampling, "steps": steps} if steps else None

    return fitted


def evaluations_of(run: Run, sampling: Mapping[str, Any], guide: Guide, cond: Cond, most: int | None = None) -> int:
    """The network evaluations of a sample, counted with a denoiser of zeros until they are above `most`."""
    counted, row = CountCalls(_zeros), {key: value[:1] for key, value in cond.items()}

    def limited(x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if most is not None and counted.samples > most:
            raise _Above
        return counted(x, alpha, sigma, **cond)

    with torch.no_grad(), contextlib.suppress(_Above):
        batch_sampler(run, limited, sampling=sampling, seed=0, cond=row, guide=guide)(0, 1, None)
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
        ValueError: if one step or the tuned setting takes more. So it is for an adaptive solver, and for a grid of
            given times.
    """
    if budget is None:
        return dict(sampling)
    if "tuned" in sampling:
        if (count := evaluations_of(run, sampling, guide, cond)) > budget:
            raise ValueError(f"expected a tuned setting within --budget={budget}, got {count} evaluations: tune for it")
        return dict(sampling)
    solver: Solver = build.build(build.SOLVERS, sampling["solver"])
    name = build.unparse(sampling["solver"])
    if not solver.fixed_grid:
        raise ValueError(f"expected no --budget for {name}, whose tolerances decide its evaluations, got {budget}")
    if len(grid_of(run, {**sampling, "steps": 2})) == len(grid_of(run, {**sampling, "steps": 3})):
        raise ValueError(f"expected no --budget for a grid that names its times, got {budget}: leave it out")
    fitted = fitting(run, budget, guide, cond)(sampling)
    if fitted is None:
        one = next(chosen for n in (1, 2) if _is_possible(run, chosen := {**sampling, "steps": n}))
        last = " with the last denoising, which --nodenoise leaves out" if sampling["denoise"] else ""
        least = evaluations_of(run, one, guide, cond)
        raise ValueError(f"expected --budget of at least {least} for one step of {name}{last}, got {budget}")
    return fitted


def _is_possible(run: Run, sampling: Mapping[str, Any]) -> bool:
    """Whether the grid can be made with these steps."""
    try:
        return len(grid_of(run, sampling)) > 1
    except ValueError:
        return False


class _Above(Exception):  # noqa: N818 - no error
    """More evaluations than were asked for."""


def check_budget(budget: object, steps: object) -> None:
    """Raises ValueError if both are given."""
    if budget and steps:
        raise ValueError("expected --steps or --budget, got both: leave one out")


def limits_of(budget: Sequence[int], steps: Sequence[int]) -> list[dict[str, Any]]:
    """A keyword of `sampling_of` for each row: its budget or its steps; {} alone where neither is given."""
    return [{"budget": count} for count in budget] or [{"steps": count} for count in steps] or [{}]


def _zeros(x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
    return torch.zeros_like(x)
