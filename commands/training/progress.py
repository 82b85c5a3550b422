"""The progress of a training: a bar, or lines where there is no terminal, and the times of the rows of its log."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ml_collections
import torch
from tqdm import tqdm

from scorefield.commands.progress_bar import duration, say
from scorefield.commands.training.timetable import plans
from scorefield.training.memory import memory

ESTIMATED = 3.0  # seconds of steps, after which the first line says how long the run will take


class _Mark(NamedTuple):
    """A moment of the run: images seen, the clock, and the seconds within steps so far."""

    images: int
    clock: float
    stepping: float


@dataclass
class Progress:
    """A bar on a terminal; elsewhere a line with the time that the run will take, then one every `log_seconds`.

    Args:
        settings: of training.
        before: images seen before.
        show: whether to show anything.
    """

    settings: ml_collections.ConfigDict
    before: int
    show: bool = True

    def __post_init__(self) -> None:
        off = None if self.show else True
        self._bar = tqdm(
            total=self.settings.images, initial=self.before, unit="image", unit_scale=True, desc="train", disable=off
        )
        self._stepping = 0.0
        self._row = self._line = self._mark(self.before)
        self._estimated = False

    def update(self, images: int) -> None:
        """Move the bar."""
        self._bar.update(images - self._bar.n)

    def add(self, seconds: float) -> None:
        """Count the seconds of a step."""
        self._stepping += seconds

    def timing(self, images: int, device: torch.device) -> dict[str, float]:
        """The speed since the last row, and the memory."""
        before, self._row = self._row, self._mark(images)
        seconds = self._row.clock - before.clock
        return {
            "images_per_second": (images - before.images) / (self._row.stepping - before.stepping),
            "seconds": seconds,
            "seconds_outside_steps": seconds - (self._row.stepping - before.stepping),
            **memory(device),
        }

    def line(self, images: int, facts: Callable[[], str]) -> None:
        """Print how long the run will take, once some steps are known; then a line of facts every `log_seconds`."""
        if not self.show:
            return
        before, now = self._line, self._mark(images)
        if before.images == self.before:  # the first step prepares, and is slower
            self._line = now
            return
        if now.clock - before.clock < (self.settings.log_seconds if self._estimated else ESTIMATED):
            return
        self._line = now
        rate = (now.images - before.images) / (now.stepping - before.stepping)
        left = (self.settings.images - images) / rate
        speed = f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"
        if not self._estimated:
            self._estimated = True
            say(f"{speed}: {duration(left)} to go{plans(self.settings, left)}")
        elif self.settings.log_seconds and self._bar.disable:
            say(f"{images:>12,} images  {facts()}  {speed}  {duration(left)} left")
        self._bar.set_postfix_str(facts())

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _mark(self, images: int) -> _Mark:
        return _Mark(images, time.perf_counter(), self._stepping)
