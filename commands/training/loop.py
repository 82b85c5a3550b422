"""The steps of a training, with its checkpoints and its pictures when they are due."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol

from scorefield.commands.interruption import Interrupted, graceful_stop
from scorefield.commands.training.session import Session
from scorefield.commands.training.timetable import CHECKPOINT, PICTURE, Timetable
from scorefield.training import Step, TrainingState

TIMEOUT = timedelta(hours=2)  # of a process that waits for the first one's pictures and checkpoints

Due = Callable[[int], bool]


class TrainingLog(Protocol):
    """What the loop needs of a log. All processes call each method."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def following(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps, written down."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept."""
        ...

    def pictures(self, state: TrainingState, stopped: Callable[[], object]) -> None:
        """Draw what the weights make."""
        ...


def follow(
    session: Session,
    log: TrainingLog,
    steps: Iterator[Step],
    log_state: dict[str, Any],
    on_step: Callable[[Step, Due], None] = lambda step, due: None,
) -> dict[str, Any]:
    """Take the steps, save, and draw pictures when they are due; a summary of it.

    Args:
        session: in training.
        log: of it.
        steps: of the engine.
        log_state: what the checkpoint kept of the log, {} for a new run.
        on_step: called at each step before it is saved, with `due(every)`: whether a multiple of that number of images
            was passed. At the last step everything is due, but for an `every` of 0.

    Raises:
        Interrupted: after a signal, once a checkpoint is written.
        ValueError: as the log, and if there is no room for a checkpoint.
    """
    state, settings = session.state, session.run.config.training
    began, before = time.perf_counter(), state.images
    timetable = Timetable(settings)
    with log, graceful_stop() as stop:
        log.load_state(log_state)
        last_seen = before
        for step in log.following(steps):
            over = step.images >= settings.images

            def due(every: int, step: Step = step, last_seen: int = last_seen, over: bool = over) -> bool:
                return every > 0 and (over or step.images // every > last_seen // every)

            on_step(step, due)
            signal, clock = stop.agreed(timetable.request())
            if signal:
                place = session.save(log.state())
                raise Interrupted(signal, f"interrupted: saved {place}; the same command resumes from there")
            if (due(settings.sample_every) or clock & PICTURE) and not over:
                with timetable.making(PICTURE):
                    log.pictures(state, lambda: stop.signal)
            if (due(settings.checkpoint_every) or clock & CHECKPOINT) and not over:
                with timetable.making(CHECKPOINT):
                    session.save_if_room(log.state())
            last_seen = step.images
        if state.images > before:
            session.save(log.state())
            if settings.sample_every > 0:
                log.pictures(state, lambda: stop.signal)
    seconds = time.perf_counter() - began
    return {
        "images": state.images,
        "images_this_time": state.images - before,  # the next two are about these
        "seconds": round(seconds, 1),
        "images_per_second": round((state.images - before) / seconds, 1),
    }
