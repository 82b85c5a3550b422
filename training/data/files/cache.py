"""Decoded data in a file of raw bytes that is mapped into memory, so that it is decoded once."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

FOLDER = ".scorefield"  # beside the data; hidden, so that no reader reads it
VERSION = 3
ELSEWHERE = "choose another folder (cache=FOLDER, --config.data.cache=FOLDER), or keep it in memory (cache='off')"


class Content(NamedTuple):
    """What a reader makes: rows in chunks (n, *shape), and facts that are complete after the last of them."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    chunks: Iterator[NDArray[Any]]
    facts: Callable[[], dict[str, Any]]


def cached(
    where: str | os.PathLike[str], beside: Path, source: Any, files: list[Path], make: Callable[[], Content]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The rows (N, *shape) and the facts that `make` decodes: read from their cache, or decoded and cached.

    A cache is a folder that gets its name when all of it is on the disk, so that a partial one is never used. If a file
    or a setting changes, its name changes too, and the cache that it replaces is removed.

    Args:
        where: the folder of the caches; "" for one beside the data, if that can be written; "off" for memory.
        beside: the folder of the data.
        source: the data set and its settings.
        files: the files that are decoded.
        make: starts the decoding.

    Raises:
        ValueError: if `where` is a folder that cannot be written, or the disk has no room.
    """
    place = _place(os.fspath(where), beside)
    if place is None:
        return _in_memory(make())
    stamp = [(os.path.relpath(file, beside), *_stamp(file)) for file in files]
    keys = (json.dumps([VERSION, str(beside.resolve()), source], default=str), json.dumps(stamp))
    prefix, suffix = (hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys)
    path = place / f"{prefix}-{suffix}"
    data = _open(path)
    if data is None and not os.access(place, os.W_OK | os.X_OK):
        return _in_memory(make())
    if data is None:
        with locked(place / f"{prefix}.lock"):  # of several processes one decodes, the others wait
            data = _open(path)
            if data is None:
                _write(path, prefix, make())
                data = _open(path)
    assert data is not None
    return data


def _place(where: str, beside: Path) -> Path | None:
    """The folder of the caches, made if need be; None for memory."""
    if where == "off":
        return None
    place, reason = Path(where).expanduser() if where else beside / FOLDER, ""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f" ({error})"
    if where and (reason or not os.access(place, os.W_OK | os.X_OK)):
        raise ValueError(f"expected cache to be a folder that can be written, got {where}{reason}: choose another")
    return place if place.is_dir() else None


def _write(path: Path, prefix: str, content: Content) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        count = 0
        with (part / "x.bin").open("wb") as file:
            for rows in content.chunks:
                file.write(np.ascontiguousarray(rows, content.dtype).data)
                count += len(rows)
            _to_disk(file)
        about = {"shape": [count, *content.shape], "dtype": np.dtype(content.dtype).str, "facts": content.facts()}
        with (part / "about.json").open("w") as file:
            json.dump(about, file)
            _to_disk(file)
        for old in path.parent.glob(f"{prefix}-*"):
            if old != part:
                shutil.rmtree(old, ignore_errors=True)
        part.rename(path)
    except OSError as error:
        raise ValueError(
            f"the decoded data could not be written to {path.parent} ({error}): make room, {ELSEWHERE}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return -1, 0  # the reader of its content refuses it
    return status.st_size, status.st_mtime_ns


def _open(path: Path) -> tuple[NDArray[Any], dict[str, Any]] | None:
    """The rows and facts of a complete cache, or None."""
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


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def locked(path: Path, needed: bool = True) -> Iterator[None]:
    """One process at a time, if the system has such locks; a process that dies releases its lock.

    Raises:
        ValueError: if the file system has none, and the lock is needed.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # Lustre may refuse
            if needed:
                raise ValueError(
                    f"{path.parent}: no file can be locked there ({error.strerror}): {ELSEWHERE}"
                ) from None
        yield
