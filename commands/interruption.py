"""Signals that wait for a step to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from training.distributed import Agreement, Ranks


class Interrupted(KeyboardInterrupt):
    """By a signal, whose number decides the exit status: 128 and the number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@dataclass
class Stop:
    """Which signal asked for an end."""

    agreement: Agreement
    asked: int = 0

    def agreed(self) -> int:
        """The signal that any of the processes was sent: they must end at the same step, and all ask once a step."""
        return self.agreement(self.asked)


@contextmanager
def between_steps() -> Iterator[Stop]:
    """Ctrl-C and a polite kill wait for the step to end, so that what is saved is whole; asked twice, they do not."""
    stop = Stop(Agreement(Ranks.current()))

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise Interrupted(number)
        stop.asked = number

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
