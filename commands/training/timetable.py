"""What training does by the clock: its pictures and its checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ml_collections

from scorefield.commands.progress_bar import duration
from scorefield.training import Ranks

PICTURE, CHECKPOINT = 1, 2
SHARE = 0.1  # of the time, for pictures


def plans(settings: ml_collections.ConfigDict, seconds: float) -> str:
    """What a run that takes `seconds` shows and saves by the clock, in words."""
    words = []
    if settings.sample_every > 0 and 0 < settings.sample_seconds < seconds:
        words.append(f"first samples after {duration(settings.sample_seconds)}")
    if settings.checkpoint_every > 0 and 0 < settings.checkpoint_seconds < seconds:
        words.append(f"a checkpoint every {duration(settings.checkpoint_seconds)}")
    return "".join(f", {word}" for word in words)


@dataclass
class Timetable:
    """When pictures and checkpoints are due by the clock of the first process.

    The first picture is due after `training.sample_seconds`. Each waits until the run has lasted twice as long, and
    until drawing takes a tenth of the time at most. A checkpoint is due `training.checkpoint_seconds` after the last.
    Those by images go on beside them; where `sample_every` or `checkpoint_every` is 0, none is due by the clock either.

    Args:
        settings: of training.
        clock: seconds.
    """

    settings: ml_collections.ConfigDict
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began, self._requested = self.clock(), 0
        first = {PICTURE: self.settings.sample_seconds, CHECKPOINT: self.settings.checkpoint_seconds}
        every = {PICTURE: self.settings.sample_every, CHECKPOINT: self.settings.checkpoint_every}
        self._next = {what: self._began + first[what] for what in first if first[what] > 0 and every[what] > 0}

    def request(self) -> int:
        """The sum of what is due and was not requested before; 0 on all processes but the first."""
        now = self.clock()
        due = sum(what for what, then in self._next.items() if now >= then) if Ranks.current().first else 0
        due &= ~self._requested
        self._requested |= due
        return due

    @contextmanager
    def making(self, what: int) -> Iterator[None]:
        """Around the making of a picture or a checkpoint, whatever the reason for it."""
        began = self.clock()
        yield
        now = self.clock()
        self._requested &= ~what
        if what in self._next:
            pause = max(now - self._began, (now - began) / SHARE)
            self._next[what] = now + (pause if what == PICTURE else self.settings.checkpoint_seconds)
