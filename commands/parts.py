"""Arrays that are saved part by part, each completely or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.commands.outputs import write_arrays

Arrays = dict[str, NDArray[Any]]


class Parts:
    """A folder of named parts.

    Args:
        folder: made with the first part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    def save(self, name: str, arrays: Arrays) -> None:
        """Save a part, completely or not at all."""
        write_arrays(self._file(name), **arrays)

    def load(self, name: str) -> Arrays:
        """A saved part."""
        with np.load(self._file(name)) as stored:
            return {key: stored[key] for key in stored.files}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"
