"""What happens where a part of the log cannot be written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from scorefield.commands.run import Run
from scorefield.training.checkpoints.atomic import FULL


@contextmanager
def room(run: Run, optional: bool = False) -> Iterator[None]:
    """Report what cannot be written; unless it is optional, `training.on_full_disk` decides whether to stop.

    Raises:
        ValueError: if training must stop.
    """
    try:
        yield
    except OSError as error:
        where, repair = error.filename or run.workdir, "make room" if error.errno in FULL else "repair that"
        line = f"{error.strerror or error}: part of the log is not written in {where}"
        if not optional and run.config.training.get("on_full_disk", "stop") != "continue":
            raise ValueError(f"{line}; {repair}, and run the same command again") from None
        tqdm.write(line, file=sys.stderr)
