"""A file of rows, one JSON object a line, that goes on where a checkpoint was."""

import json
import os
from pathlib import Path
from typing import Any

from scorefield.training.checkpoints.atomic import atomic_file


class Rows:
    """A .jsonl file, opened to add to, less what was written after `images` images.

    A crash loses at most the line that it cut short: that one is removed. Where there is no room for a row the file
    stays whole, and the row is written with the next one.

    Args:
        path: of the file.
        images: rows that say more are removed.
    """

    def __init__(self, path: Path, images: int) -> None:
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows = [row for row in map(_parsed, lines) if row is not None and row["images"] <= images]
        with atomic_file(path) as part, part.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
            file.flush()
            os.fsync(file.fileno())
        self._file = path.open("ab", buffering=0)
        self._behind = b""

    def write(self, row: dict[str, Any]) -> None:
        """Add a row, at once.

        Raises:
            OSError: if there is no room.
        """
        self.rows.append(row)
        self._behind += f"{json.dumps(row)}\n".encode()
        self._add()

    def _add(self) -> None:
        whole, left = self._file.seek(0, os.SEEK_END), self._behind
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(whole)
            raise
        self._behind = b""

    def to_disk(self) -> None:
        """Wait until the rows are on the disk, so that a checkpoint is never ahead of them.

        Raises:
            OSError: if there is no room for one.
        """
        self._add()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parsed(line: str) -> dict[str, Any] | None:
    """A row, or None for a line that a crash cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("images"), int) else None
