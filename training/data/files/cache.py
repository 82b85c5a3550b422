"""Decoded data kept as raw bytes in a file that is mapped into memory: the work of reading is done once."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

FOLDER = ".scorefield"  # beside the data; hidden, so that no reader takes it for data
VERSION = 2
ELSEWHERE = "choose another folder (cache=FOLDER, --config.data.cache=FOLDER), or keep it in memory (cache='off')"


class Content(NamedTuple):
    """What a reader makes: rows (n, *shape), some at a time, and what is known after the last of them."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    chunks: Iterator[NDArray[Any]]
    facts: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Cache:
    """Where decoded data is kept, and what it is decoded from.

    A cache is a folder that gets its name when all of it is on the disk: one half written is never used. When a file
    or a setting changes its name changes too, and the one that it replaces is removed.

    Args:
        place: the folder of the caches: beside the data by default, the one given, or none ("off": in memory).
        source: the data set and its settings.
        stamp: the name, size and time of each file that it is read from (-1 and 0 where a link leads to none).
    """

    place: Path | None
    source: str
    stamp: list[tuple[str, int, int]] = field(repr=False)

    @classmethod
    def placed(cls, where: str | os.PathLike[str], beside: Path, source: Any, files: list[Path]) -> "Cache":
        """The cache of files: `where` is a folder, "off", or "" for beside the data, if that can be written.

        Raises:
            ValueError: if the folder that is given cannot be written.
        """
        stamp = [(os.path.relpath(file, beside), *_stamp(file)) for file in files]
        given = os.fspath(where)
        place = None if given == "off" else Path(given).expanduser() if given else beside / FOLDER
        if place is not None:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if given:
                    raise ValueError(
                        f"expected cache to be a folder that can be written, got {given} ({error})"
                    ) from None
            if not os.access(place, os.W_OK | os.X_OK):
                if given:
                    raise ValueError(f"expected cache to be a folder that can be written, got {given}: choose another")
                place = place if place.is_dir() else None
        return cls(place, json.dumps([VERSION, str(beside.resolve()), source], default=str), stamp)

    def read(self, make: Callable[[], Content]) -> tuple[NDArray[Any], dict[str, Any]]:
        """The rows (N, *shape) and the facts, from the cache, or made and then cached.

        Raises:
            ValueError: if the disk has no room.
        """
        if self.place is None:
            return _in_memory(make())
        digest = (hashlib.sha256(part.encode()).hexdigest()[:16] for part in (self.source, json.dumps(self.stamp)))
        prefix, suffix = digest
        path = self.place / f"{prefix}-{suffix}"
        found = _open(path)
        if found is None and not os.access(self.place, os.W_OK | os.X_OK):
            return _in_memory(make())
        if found is None:
            with _locked(self.place / f"{prefix}.lock"):  # of several processes one decodes, the others wait
                found = _open(path)
                if found is None:
                    self._write(path, prefix, make())
                    found = _open(path)
        assert found is not None
        return found

    def _write(self, path: Path, prefix: str, content: Content) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            count = 0
            with (part / "x.bin").open("wb") as file:
                for rows in content.chunks:
                    file.write(np.ascontiguousarray(rows, content.dtype).data)
                    count += len(rows)
                _settle(file)
            about = {"shape": [count, *content.shape], "dtype": np.dtype(content.dtype).str, "facts": content.facts()}
            with (part / "about.json").open("w") as file:
                json.dump(about, file)
                _settle(file)
            for old in path.parent.glob(f"{prefix}-*"):
                if old != part:
                    shutil.rmtree(old, ignore_errors=True)
            part.rename(path)
        except OSError as error:
            raise ValueError(
                f"the decoded data could not be kept in {path.parent} ({error}): make room, {ELSEWHERE}"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return -1, 0  # its reader says so
    return found.st_size, found.st_mtime_ns


def _open(path: Path) -> tuple[NDArray[Any], dict[str, Any]] | None:
    """What a cache holds, or None where there is none that is whole."""
    try:
        about = json.loads((path / "about.json").read_text())
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        if (path / "x.bin").stat().st_size != int(np.prod(shape)) * dtype.itemsize:
            return None
        # A plain array over the mapping: numpy.memmap's own class does Python work at every indexing.
        return np.asarray(np.memmap(path / "x.bin", dtype, "r", shape=shape)), about["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _in_memory(content: Content) -> tuple[NDArray[Any], dict[str, Any]]:
    return np.concatenate([np.asarray(rows, content.dtype) for rows in content.chunks]), content.facts()


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system has such locks; one that dies lets go."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # as Lustre may
            raise ValueError(f"{path.parent}: no file can be locked there ({error.strerror}): {ELSEWHERE}") from None
        yield
