"""What an evaluation keeps, by the content that decides it, so that no sample and no feature is computed twice."""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scorefield.commands.outputs import write_json
from scorefield.commands.parts import Parts

VERSION = 1


def parts_of(folder: Path, kind: str, settings: Any) -> Parts:
    """The parts that these settings decide, in FOLDER/KIND-HASH.

    Args:
        folder: of all parts.
        kind: "samples" or "features".
        settings: everything that decides the content, as JSON.
    """
    return Parts(folder / f"{kind}-{_key(settings)}")


def digest(settings: Any) -> str:
    """SHA-256, in hex, of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _key(settings: Any) -> str:
    """The name of what settings decide: by other versions it is computed again, because numbers may differ."""
    return digest([VERSION, importlib.import_module("scorefield").__version__, torch.__version__, settings])[:24]


def shared_folder() -> Path:
    """Where features of data sets are kept for all runs: SCOREFIELD_CACHE, or ~/.cache/scorefield."""
    return Path(os.environ.get("SCOREFIELD_CACHE") or Path.home() / ".cache" / "scorefield")


def kept_json(folder: Path, kind: str, settings: Any, make: Callable[[], Any]) -> Any:
    """What `make` computes, kept as JSON in FOLDER/KIND-HASH.json by the settings that decide it."""
    path = folder / f"{kind}-{_key(settings)}.json"
    if path.is_file():
        return json.loads(path.read_text())
    found = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found
