"""The file of a compressed set of images:

8 bytes     "SCOREFLD"
4 bytes     length of the header
4 bytes     CRC-32 of all that follows
header      JSON, compressed: what the file holds, and what it takes to read it
arrays      labels, and other conditions or names, compressed
words       the stack, 32 bits each, little-endian as all numbers here
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.compression.stack import Words

MAGIC = b"SCOREFLD"
VERSION = 1
_START = struct.Struct("<8sII")
# Words that every header has: they cost little then.
_USUAL = (
    b'{"version": 1, "shape": [1, 28, 28], "dtype": "uint8", "levels": 256, "low": -1.0, "high": 1.0, "num": 100, '
    b'"images": "", "plain": 4, "batches": [[1, 2], [2, 3]], "plan": {"steps": 100, "start": 0.0, "density": [255], '
    b'"std": null}, "model": "", "checkpoint": "0000128000", "weights": "ema", "torch": "2.13.0+cpu", "threads": 1, '
    b'"device": "cpu AVX2 AVX512 cuda", "names": null, "words": 2500, "arrays": [["label", "<i8", "|u1", [100], 80]]}'
)


@dataclass(frozen=True)
class Container:
    """What a file holds.

    Args:
        header: JSON values.
        words: of the stack.
        arrays: by name; integers are kept in the smallest type, and come back in their own.
    """

    header: Mapping[str, Any]
    words: Words
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The bytes of the file."""
        small = {name: _smallest(array) for name, array in self.arrays.items()}
        packed = {name: zlib.compress(array.tobytes(), 9) for name, array in small.items()}
        kinds = [
            [name, array.dtype.str, small[name].dtype.str, list(array.shape), len(packed[name])]
            for name, array in self.arrays.items()
        ]
        text = {"version": VERSION, **self.header, "words": len(self.words), "arrays": kinds}
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_USUAL)
        header = compressor.compress(json.dumps(text).encode()) + compressor.flush()
        body = header + b"".join(packed.values()) + self.words.astype("<u4").tobytes()
        return _START.pack(MAGIC, len(header), zlib.crc32(body)) + body

    @classmethod
    def unpack(cls, data: bytes, name: str) -> "Container":
        """What `pack` wrote.

        Raises:
            ValueError: for other bytes, or fewer; `name` is that of the file.
        """
        if len(data) < _START.size or not data.startswith(MAGIC):
            raise ValueError(f"expected a file of --mode=compress in {name}, got another: give --input")
        _, length, crc = _START.unpack_from(data)
        body = data[_START.size :]
        if zlib.crc32(body) != crc:
            raise ValueError(
                f"expected {name} as --mode=compress wrote it, got other bytes or fewer ({len(data):,}): it is "
                "truncated or damaged, so restore it or compress again"
            )
        header = json.loads(zlib.decompressobj(-15, zdict=_USUAL).decompress(body[:length]))
        if header["version"] != VERSION:
            raise ValueError(
                f"expected a file of version {VERSION} in {name}, got version {header['version']}: install a newer "
                "scorefield"
            )
        arrays, place = {}, length
        for key, dtype, small, shape, size in header.pop("arrays"):
            flat = np.frombuffer(zlib.decompress(body[place : place + size]), small)
            arrays[key] = flat.astype(dtype).reshape(shape)
            place += size
        words = np.frombuffer(body[place:], "<u4").astype(np.uint32)
        return cls(header, words, arrays)

    @classmethod
    def read(cls, path: Path) -> "Container":
        """The file at a path.

        Raises:
            ValueError: as `unpack`, or if there is no such file.
        """
        if not path.is_file():
            raise ValueError(f"expected a file of --mode=compress in {path}, found none: compress, or give --input")
        return cls.unpack(path.read_bytes(), str(path))


def _smallest(array: NDArray[Any]) -> NDArray[Any]:
    """Integers in the smallest type that holds them, in little-endian order."""
    if array.dtype.kind in "iu" and array.size:
        array = array.astype(np.promote_types(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))
    return array.astype(array.dtype.newbyteorder("<"))
