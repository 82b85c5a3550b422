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
    """An end by a signal, with the exit status that shells give it: 128 plus its number.

    Args:
        number: of the signal.
        line: to print.
    """

    def __init__(self, number: int, line: str = "interrupted") -> None:
        super().__init__(line)
        self.signal, self.line = number, line


@dataclass
class Stop:
    """The signal that requested an end, 0 for none, and when it came."""

    agreement: Agreement
    signal: int = 0
    since: float = 0.0

    def agreed(self, request: int = 0) -> tuple[int, int]:
        """The signal that any process received, and the first process's request, at the same step on all of them.

        Every process calls it once a step. A request below 8 is lost where a signal comes with it.
        """
        return divmod(self.agreement(8 * self.signal + request), 8)


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """SIGINT and SIGTERM wait until the step ends, so that its checkpoint is complete; a second SIGINT does not.

    A signal within two seconds of the first counts as the same one: torchrun forwards what its processes also receive.
    """
    stop, first = Stop(Agreement(Ranks.current())), Ranks.current().first

    def on_signal(number: int, frame: object) -> None:
        now = time.monotonic()
        if stop.signal and number == signal.SIGINT and now > stop.since + 2:
            raise Interrupted(number)
        if not stop.signal:
            stop.signal, stop.since = number, now
            if first:
                tqdm.write(
                    "stopping after this step, with a checkpoint; a second Ctrl-C does not wait", file=sys.stderr
                )

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
