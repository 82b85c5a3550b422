"""What the readers of downloaded files share: where they look, and what they say when it is not right."""

import gzip
import os
import zlib
from pathlib import Path

MAGIC = b"\x1f\x8b"  # the first bytes of a gzip file
AGAIN = "delete it and download it again (download=True, --config.data.download=true)"


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The folder of the data sets: `root`, else the environment variable DATA_ROOT, else `data`."""
    return Path(root or os.environ.get("DATA_ROOT") or "data").expanduser()


def given_path(path: str | os.PathLike[str]) -> Path:
    """The path, unless it is empty, which would be the current folder.

    Raises:
        ValueError: if it is.
    """
    if not os.fspath(path):
        raise ValueError("expected a path to the data, got an empty one: give it (path=..., --config.data.path=...)")
    return Path(path).expanduser()


def missing(path: Path) -> FileNotFoundError:
    """The error for a data set's file that is not there."""
    return FileNotFoundError(
        f"expected {path}, which is not there: download it (download=True, --config.data.download=true) "
        "or set DATA_ROOT to the folder of your data sets"
    )


def read_plain(path: Path) -> bytes:
    """All bytes of a file; one in gzip's format, or there only as `<path>.gz`, is decompressed.

    Raises:
        FileNotFoundError: if neither is there.
        ValueError: if the compressed stream is damaged.
    """
    if not path.is_file():
        packed = path.with_name(path.name + ".gz")
        if not packed.is_file():
            raise missing(path)
        path = packed
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: {len(data)} bytes of damaged gzip ({error}): {AGAIN}") from error


def read_exact(path: Path, size: int) -> bytes:
    """All bytes of a file that has to hold `size` of them.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is longer or shorter.
    """
    if not path.is_file():
        raise missing(path)
    actual = path.stat().st_size
    if actual != size:
        raise ValueError(f"{path}: expected {size} bytes, got {actual}: {AGAIN}")
    return path.read_bytes()
