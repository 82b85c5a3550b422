"""The rows of a table: checkpoints x weights x solvers x steps of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorefield.commands.budget import limits_of, within
from scorefield.commands.evaluate.subjects import Drawn
from scorefield.commands.guidance import guidance_of
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.sampling import is_tuned, sampling_of
from scorefield.commands.trained import Trained, open_trained
from scorefield.configs import build

ALL = "all"


@dataclass(frozen=True)
class Choice:
    """What the flags say of sampling.

    Args:
        solver: solvers; () for the configuration's.
        steps: numbers of steps; () for the configuration's.
        budget: network evaluations of a sample, in place of steps.
        grid: of all solvers.
        denoise: of all solvers.
        checkpoint: names; () for the newest, "all" for all.
        ema: the averaged weights.
        raw: the raw weights beside the averaged ones.
        label: class of all samples.
        caption: of all samples.
        guidance: keywords of `guidance_of`.
        tile: see `Run.in_tiles_of`.
    """

    solver: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    budget: tuple[int, ...] = ()
    grid: str | None = None
    denoise: bool | None = None
    checkpoint: tuple[str, ...] = ()
    ema: bool = True
    raw: bool = False
    label: str | int | None = None
    caption: str | None = None
    guidance: dict[str, Any] = field(default_factory=dict)
    tile: int = 0

    def names(self, workdir: Path) -> list[str | None]:
        """The checkpoints.

        Raises:
            ValueError: if the run has none to take all of.
        """
        if ALL not in self.checkpoint:
            return list(self.checkpoint) or [None]
        found = sorted(place.name for place in (workdir / "checkpoints").glob("[0-9]*"))
        if not found:
            raise ValueError(f"expected checkpoints in {workdir / 'checkpoints'}, found none: train first")
        return list(found)


def open_all(workdir: Path, choice: Choice, device: str | None) -> list[Trained]:
    """The run with the weights of each checkpoint: averaged, or raw, or both.

    Raises:
        ValueError: as `open_trained`.
    """
    weights = (True, False) if choice.raw else (choice.ema,)
    return [open_trained(workdir, device, ema, checkpoint=name) for name in choice.names(workdir) for ema in weights]


def rows_of(every: Sequence[Trained], choice: Choice, *, num: int, batch: int, seed: int, folder: Path) -> list[Drawn]:
    """The samples of every combination.

    Raises:
        ValueError: for options that the run does not take.
    """
    rows = []
    for trained in every:
        run = trained.run.in_tiles_of(choice.tile)
        guiding = guidance_of(trained, **choice.guidance)
        conditioning = guiding.conditioning(num, choice.label, choice.caption)
        guided = {"guidance": choice.guidance.get("guidance", 1.0), **conditioning.described, **guiding.described}
        guided |= {"tile": choice.tile} if choice.tile else {}
        for solver in choice.solver or (None,):
            known: list[dict[str, Any]] = []
            # A tuned setting brings its steps.
            for limit in limits_of(choice.budget, () if is_tuned(solver) else choice.steps):
                sampling = sampling_of(
                    run, solver=solver, grid=choice.grid, denoise=choice.denoise, trained=trained, **limit
                )
                sampling = within(run, limit.get("budget"), sampling, guiding, conditioning.cond)
                if sampling in known:
                    name = build.unparse(solver or sampling["solver"])
                    on_stderr(f"{name} within --budget={limit.get('budget')} has the steps of a smaller one: one row")
                    continue
                known.append(sampling)
                rows.append(Drawn(trained, sampling, num, batch, seed, folder, conditioning.cond, guiding, guided))
    return rows
