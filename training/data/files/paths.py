"""What the readers of files share: where they look, and their messages."""

import gzip
import os
import zlib
from pathlib import Path

GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
REPLACE = "delete it, then download it (download=True, --config.data.download=true)"


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The folder of the data sets: `root`, else the environment variable DATA_ROOT, else `data`; absolute."""
    return Path(root or os.environ.get("DATA_ROOT") or "data").expanduser().absolute()


def nonempty_path(path: str | os.PathLike[str]) -> Path:
    """The path.

    Raises:
        ValueError: if it is empty, which would be the current folder.
    """
    if not os.fspath(path):
        raise ValueError("expected a path to the data, got an empty one: give it (path=..., --config.data.path=...)")
    return Path(path).expanduser()


def read_plain(path: Path) -> bytes:
    """All bytes of a file, decompressed if it is in gzip's format; `<path>.gz` serves if there is no `path`.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the compressed stream is damaged.
    """
    if not path.is_file():
        packed = path.with_name(path.name + ".gz")
        if not packed.is_file():
            raise _missing(path)
        path = packed
    data = path.read_bytes()
    if not data.startswith(GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: {len(data)} bytes of damaged gzip ({error}): {REPLACE}") from error


def read_exact(path: Path, size: int) -> bytes:
    """All bytes of a file that must have `size` of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is longer or shorter.
    """
    if not path.is_file():
        raise _missing(path)
    actual = path.stat().st_size
    if actual != size:
        raise ValueError(f"{path}: expected {size} bytes, got {actual}: {REPLACE}")
    return path.read_bytes()


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"expected {path}, which is not there: download it (download=True, --config.data.download=true) "
        "or set DATA_ROOT to the folder of your data sets"
    )
