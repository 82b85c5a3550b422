"""A lock on a working directory."""

import fcntl
import os
from pathlib import Path

from scorefield.training.distributed.ranks import Ranks


class WorkdirLock:
    """A lock on a working directory, so that no other training writes to it while the `with` lasts."""

    def __init__(self, workdir: Path) -> None:
        self._workdir, self._lock = workdir, -1

    def __enter__(self) -> "WorkdirLock":
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def lock(self) -> None:
        """Lock the directory if it exists; call again after it is made.

        Raises:
            ValueError: if another process trains there.
        """
        if self._lock >= 0 or not self._workdir.is_dir() or not Ranks.current().first:
            return
        descriptor = os.open(self._workdir, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(f"another process trains in {self._workdir}: wait for it, or choose another") from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
        self._lock = descriptor
