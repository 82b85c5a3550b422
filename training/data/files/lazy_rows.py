"""Some rows of an array that is too large to copy, read on demand."""

from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray


class LazyRows:
    """`x[index]` in another type, read row by row on demand; it has what a `Dataset` needs of an array.

    Args:
        x: the array (N, *D), such as a memory-mapped one.
        index: the rows, (n,).
        dtype: of what is read.
    """

    def __init__(self, x: NDArray[Any], index: NDArray[np.int64], dtype: DTypeLike) -> None:
        self._x, self._index, self.dtype = x, index, np.dtype(dtype)

    @classmethod
    def of(cls, x: NDArray[Any], index: NDArray[np.int64], dtype: DTypeLike) -> NDArray[Any]:
        """The rows, typed as the array that they stand in for."""
        return cast("NDArray[Any]", cls(x, index, dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._index), *self._x.shape[1:])

    @property
    def ndim(self) -> int:
        return self._x.ndim

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.asarray(self._x[self._index[rows]]).astype(self.dtype)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype)
