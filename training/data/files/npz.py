"""The arrays in .npy and .npz files: their headers, and their content, mapped where it is large."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scorefield.training.data.files.keys import Head

READ_BY = {
    ".mat": "scipy.io.loadmat", ".h5": "h5py.File", ".hdf5": "h5py.File", ".pt": "torch.load", ".pth": "torch.load",
    ".pkl": "pickle.load", ".csv": "numpy.loadtxt", ".parquet": "pandas.read_parquet", ".safetensors": "safetensors",
}  # fmt: skip
IN_MEMORY = 1 << 28  # bytes; a larger array is mapped


def heads(path: Path) -> dict[str, Head]:
    """The shapes and types of the arrays of a file by name; that of an .npy file is `x`.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    with _readable(path), path.open("rb") as file:
        if not _is_npz(file):
            return {"x": _head(file)}
        members = {}
        with zipfile.ZipFile(file) as packed:
            for name in packed.namelist():
                if name.endswith(".npy"):
                    with packed.open(name) as member:
                        members[name.removesuffix(".npy")] = _head(member)
        return members


def load(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name, or some; that of an .npy file is `x`. Large ones are mapped, unless compressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or holds Python objects.
    """
    with _readable(path), path.open("rb") as file:
        if not _is_npz(file):
            large = path.stat().st_size > IN_MEMORY
            return {"x": _mapped(path, 0) if large else np.load(file, allow_pickle=False)}
        loaded = np.load(file, allow_pickle=False)
        offsets, members = _large(path), set(loaded.zip.namelist())
        known = [name for name in loaded.files if f"{name}.npy" in members and (names is None or name in names)]
        return {name: _mapped(path, offsets[name]) if name in offsets else loaded[name] for name in known}


def _is_npz(file: BinaryIO) -> bool:
    packed = file.read(2) == b"PK"
    file.seek(0)
    return packed


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Makes one line of any error of reading."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: give the path of an .npy or .npz file")
    try:
        yield
    except (
        ValueError, EOFError, OSError, KeyError, SyntaxError, MemoryError, NotImplementedError, RuntimeError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reader = READ_BY.get(path.suffix.lower())
        raise ValueError(
            f"{path}: expected an .npy or .npz file of numbers, got {path.stat().st_size} bytes that cannot be read "
            f"({reason}): " + (f"read it with {reader} and " if reader else "") + "save it "
            f"{'' if reader else 'again '}with numpy.save or numpy.savez"
        ) from error


def _large(path: Path) -> dict[str, int]:
    """The offsets of the large arrays of an .npz that are not compressed, by name."""
    offsets = {}
    with zipfile.ZipFile(path) as packed, path.open("rb") as file:
        for member in packed.infolist():
            if member.compress_type == zipfile.ZIP_STORED and member.file_size > IN_MEMORY:
                file.seek(member.header_offset + 26)  # the lengths of the name and of the extra field
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                offsets[member.filename.removesuffix(".npy")] = member.header_offset + 30 + name + extra
    return offsets


def _mapped(path: Path, offset: int) -> NDArray[Any]:
    """The array in .npy format that begins at the offset, mapped."""
    with path.open("rb") as file:
        file.seek(offset)
        shape, fortran, dtype = _header(file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
        mapped: NDArray[Any] = np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
        return np.asarray(mapped)


def _head(file: IO[bytes]) -> Head:
    shape, _, dtype = _header(file)
    return Head(tuple(shape), str(dtype))


def _header(file: IO[bytes]) -> Any:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
