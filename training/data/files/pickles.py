"""Pickled dictionaries of arrays, without running what a pickle may ask for."""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def load_arrays(path: Path, types: Collection[str] = ("u1",)) -> dict[str, Any]:
    """The dictionary in a file: plain values, and arrays of some types. Keys are `str` or, from Python 2, bytes.

    NumPy's constructors are never called: stand-ins keep the bytes of arrays.

    Args:
        path: the file.
        types: of arrays, as NumPy writes them in a pickle: "u1" for uint8, "f8" for float64.

    Raises:
        pickle.UnpicklingError: if it asks for any other name, or has an array of another type.
        Exception: anything, if it is damaged.
    """
    with path.open("rb") as file:
        content = _Unpickler(file, types).load()
    plain: dict[str, Any] = _plain(content)
    return plain


def _plain(value: Any) -> Any:
    """Arrays in place of their stand-ins, in dictionaries within dictionaries too."""
    if isinstance(value, dict):
        return {key.decode() if isinstance(key, bytes) else key: _plain(each) for key, each in value.items()}
    return value.array if isinstance(value, _Array) else value


class _Unpickler(pickle.Unpickler):
    """Loads plain values and arrays, and refuses every other name that a pickle asks for."""

    def __init__(self, file: BinaryIO, types: Collection[str]) -> None:
        super().__init__(file, encoding="bytes")
        self.types = types

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # NumPy 2 renamed what NumPy 1 wrote
        allowed: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): self._type,
            ("numpy", "ndarray"): _Array,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}, not needed for an array of numbers")
        return allowed[module, name]

    def _type(self, code: str | bytes, *_: object) -> "_Type":
        text = code.decode() if isinstance(code, bytes) else code
        if text not in self.types:
            raise pickle.UnpicklingError(f"refused: an array of {text!r}, where {' or '.join(self.types)} is expected")
        return _Type(text)


class _Type:
    """Stands in for a dtype."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The byte order, which is the second entry."""
        big = state[1] in (">", b">")
        self.dtype = self.dtype.newbyteorder(">" if big else "<")


class _Array:
    """Stands in for an array: `array` is made of the bytes, the shape and the order of the pickled state."""

    array: NDArray[Any]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, fortran, data = state
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    """How protocols up to 4 start an array; its state follows."""
    return _Array()


def _from_buffer(data: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> _Array:
    """How protocol 5 writes an array."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _encode(text: str, _: str) -> bytes:
    """How Python 3 writes bytes in protocols up to 2: as Latin-1."""
    return text.encode("latin1")
