"""Lines beside the output of a command."""

import sys

from scorefield.training.distributed.ranks import Ranks


def on_stderr(line: str) -> None:
    """Print a line on stderr at once; of several processes, the first does."""
    if Ranks.current().first:
        print(line, file=sys.stderr, flush=True)
