"""Work done in parts: what is finished survives an interruption, and ranks share what is left."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.commands.run import write_arrays, write_json
from scorefield.training.distributed.ranks import Ranks

__all__ = ["Arrays", "PartialResults", "Ranks"]

Arrays = dict[str, NDArray[Any]]


class PartialResults:
    """A folder of results beside the file they will become, named by a hash of all that decides them.

    Run again with the same facts, they are found; with others, they are not taken for theirs.

    Args:
        output: the file that is made of them.
        facts: settings, weights, data.
    """

    def __init__(self, output: Path, facts: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = output.with_name(f".{output.stem}.{digest}.parts")

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep a part, whole or not at all."""
        write_arrays(self._file(name), **arrays)

    def get(self, name: str) -> Arrays:
        """A part that was kept."""
        with np.load(self._file(name)) as stored:
            return {key: stored[key] for key in stored.files}

    def note(self, name: str, content: dict[str, Any]) -> None:
        """Keep facts as JSON."""
        write_json(self.folder / f"{name}.json", content)

    def noted(self, name: str) -> dict[str, Any] | None:
        """Facts that were kept, or None."""
        file = self.folder / f"{name}.json"
        found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
        return found

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"
