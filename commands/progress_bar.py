"""The progress of a long command: a bar on a terminal, and elsewhere a line now and then."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from scorefield.commands.on_stderr import on_stderr
from scorefield.likelihood.progress import with_steps
from scorefield.solvers.solver import OnStep
from scorefield.training.distributed.ranks import Ranks

LINE_SECONDS = 30.0  # between two lines
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class Bar:
    """Counts what is done, and advances with each step of a solver.

    Args:
        name: of the work.
        total: samples, or whatever the unit is.
        unit: what is counted, in the singular.
        show: whether to show anything.
        leave: whether the bar stays on the terminal when the work is done.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str = "sample",
        show: bool = True,
        leave: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bar: tqdm[Any] = tqdm(total=total, desc=name, unit=unit, disable=None if show else True, leave=leave)
        self._name, self._total, self._unit, self._clock = name, total, unit, clock
        self.in_lines = show and bool(self._bar.disable)
        self._done, self._facts = 0, ""
        self._began = self._line = clock()
        if self.in_lines:
            on_stderr(f"{name}: 0 of {total:,} {unit}s")

    def skip(self, count: int) -> None:
        """Count samples that are done."""
        self._done += count
        self._bar.update(count)
        now = self._clock()
        if self.in_lines and now - self._line >= LINE_SECONDS:
            self._line = now
            left = (self._total - self._done) * (now - self._began) / self._done if self._done > 0 else None
            time_left = "" if left is None else f", {duration(left)} left"
            on_stderr(f"{self._name}: {self._done:,} of {self._total:,} {self._unit}s{self._facts}{time_left}")

    def part(self, count: int) -> Callable[[float], None]:
        """The `progress` of work on `count` samples: it gets the share that is done."""
        start = self._done
        return lambda share: self.skip(start + round(count * share) - self._done)

    def steps(self, count: int, other: OnStep = None) -> OnStep:
        """The `on_step` of a solver for `count` samples. It calls `other` as well."""
        return with_steps(self.part(count), other)

    def say(self, **facts: str) -> None:
        """Show these facts beside the count."""
        self._bar.set_postfix(**facts)
        self._facts = "".join(f", {name} {fact}" for name, fact in facts.items())

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


@contextmanager
def progress_bar(
    name: str, total: int, show: bool = True, *, unit: str = "sample", leave: bool = True
) -> Iterator[Bar]:
    """A bar with the remaining time on terminals. Elsewhere a line on stderr, now and every 30 seconds; see `Bar`."""
    bar = Bar(name, total, unit, show, leave)
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """A time in words, in its two largest units: 45 s, 2 min 5 s, 12 min, 1 h 12 min; in minutes from ten on."""
    left = max(0, round(seconds) if seconds < 600 else 60 * round(seconds / 60))
    for (name, size), (below, smaller) in itertools.pairwise(UNITS):
        if left >= size:
            more = left % size // smaller
            return f"{left // size} {name}" + (f" {more} {below}" if more else "")
    return f"{left} s"


def say(line: str) -> None:
    """Print a line at once, beside a progress bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def tell(line: str) -> None:
    """Print at once what a command does now; of several processes, the first does."""
    if Ranks.current().first:
        say(line)
