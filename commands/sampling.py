"""How a run is sampled: its configuration's sampler, with what the command line gives in place of it."""

from typing import Any

from scorefield.commands.run import Run


def sampling_of(
    run: Run,
    *,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    denoise: bool | None = None,
) -> dict[str, Any]:
    """`solver` and `grid` (specs), `steps` and `denoise`: those given, and the configuration's for the others."""
    given = {"solver": solver, "grid": grid, "steps": steps, "denoise": denoise}
    return {**run.config.sampling, **{key: value for key, value in given.items() if value is not None}}
