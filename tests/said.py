"""What a command said on stderr, without the lines of its progress."""

import re

PROGRESS = re.compile(r".+: [\d,]+ of [\d,]+ \w+s(, .*)?")


def without_progress(err: str) -> str:
    """The other lines."""
    return "".join(line for line in err.splitlines(keepends=True) if not PROGRESS.fullmatch(line.rstrip("\n")))
