"""Progress of a library function: a callable that gets the share of the work that is done, from 0 to 1."""

from collections.abc import Callable

from scorefield.solvers import Progress
from scorefield.solvers.solver import OnStep

ShareDone = Callable[[float], None] | None


def part_of(progress: ShareDone, low: float, high: float) -> ShareDone:
    """The progress of a part of the work, from `low` to `high` of the whole."""
    return None if progress is None else lambda share: progress(low + (high - low) * share)


def with_steps(progress: ShareDone, other: OnStep = None) -> OnStep:
    """The `on_step` of a solver that tells its progress. It calls `other` as well."""
    if progress is None:
        return other

    def on_step(state: Progress) -> None:
        progress(state.step / state.steps)
        if other is not None:
            other(state)

    return on_step
