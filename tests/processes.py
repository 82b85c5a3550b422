"""Processes that tests start in order to send them signals."""

import signal
import subprocess
import threading
from typing import Any


def start(command: list[str], **options: Any) -> "subprocess.Popen[Any]":
    """Start a command with the default reaction to SIGINT and SIGTERM.

    A child inherits ignored signals. Background jobs of a shell and services ignore SIGINT, and Python then raises no
    KeyboardInterrupt.
    """
    assert threading.current_thread() is threading.main_thread()
    # A child does not inherit handlers. Any handler therefore gives it the default.
    ignored = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    try:
        return subprocess.Popen(command, **options)
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
