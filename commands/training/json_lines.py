"""A file of rows, one JSON object a line, that continues from a checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

from scorefield.training.checkpoints.atomic import atomic_file


class JsonLines:
    """A .jsonl file opened for appending, without the rows of more than `images` images.

    A line that a crash cut short is removed. On a full disk the file keeps its complete rows, and the new row is
    written with the next one.

    Args:
        path: of the file.
        images: rows with a larger number are removed.
    """

    def __init__(self, path: Path, images: int) -> None:
        self.rows = [row for row in rows_of(path) if row["images"] <= images]
        with atomic_file(path) as part, part.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
            file.flush()
            os.fsync(file.fileno())
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def write(self, row: dict[str, Any]) -> None:
        """Add a row.

        Raises:
            OSError: if there is no room.
        """
        self.rows.append(row)
        self._unwritten += f"{json.dumps(row)}\n".encode()
        self._add()

    def _add(self) -> None:
        end, left = self._file.seek(0, os.SEEK_END), self._unwritten
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise
        self._unwritten = b""

    def flush(self) -> None:
        """Flush the rows to the disk, so that a checkpoint is never newer than they are.

        Raises:
            OSError: if there is no room.
        """
        self._add()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, without lines that a crash cut short; none if there is no file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [row for row in map(_parsed, lines) if row is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    """A row, or None for a line that a crash cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("images"), int) else None
