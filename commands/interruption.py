"""Signals that wait for a step to end."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from scorefield.training.distributed.ranks import Agreement, Ranks


class Interrupted(KeyboardInterrupt):
    """By a signal, whose number decides the exit status: 128 and the number, as shells have it.

    Args:
        number: of the signal.
        line: what is said of it.
    """

    def __init__(self, number: int, line: str = "interrupted") -> None:
        super().__init__(line)
        self.signal, self.line = number, line


@dataclass
class Stop:
    """Which signal asked for an end."""

    agreement: Agreement
    asked: int = 0
    since: float = 0.0

    def agreed(self) -> int:
        """The signal that any of the processes was sent: they must end at the same step, and all ask once a step."""
        return self.agreement(self.asked)


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Ctrl-C and a polite kill wait for the step to end, so that what is saved is whole; Ctrl-C again does not.

    What comes within two seconds is the same one: torchrun passes on what its processes were sent as well.
    """
    stop, first = Stop(Agreement(Ranks.current())), Ranks.current().first

    def ask(number: int, frame: object) -> None:
        now = time.monotonic()
        if stop.asked and number == signal.SIGINT and now > stop.since + 2:
            raise Interrupted(number)
        if not stop.asked:
            stop.asked, stop.since = number, now
            if first:
                tqdm.write("stopping after this step, with a checkpoint; Ctrl-C again does not wait", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
