"""The lengths to which codecs that know no data set compress an image: how complex the image is."""

import io
import lzma

import numpy as np
from numpy.typing import NDArray
from PIL import Image

XZ = ({"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20},)


def plain_lengths(stored: NDArray[np.integer], levels: int) -> NDArray[np.float64]:
    """Bits of each item alone, the shorter of PNG and xz, (N,): L(x) of Serra et al. 2020, Eq. 3.

    PNG takes images of 1 or 3 channels and up to 256 levels. xz has no header here, and stores 1, 2 or 4 bytes for each
    value.

    Args:
        stored: integers 0 .. levels - 1, (N, *D).
        levels: their number.
    """
    size = next((kind for kind, most in (("u1", 1 << 8), ("<u2", 1 << 16)) if levels <= most), "<u4")
    return np.array([8.0 * min(_lengths(each.astype(size))) for each in stored], np.float64)


def _lengths(item: NDArray[np.integer]) -> list[int]:
    """Bytes by each codec that takes the item."""
    found = [len(lzma.compress(item.tobytes(), lzma.FORMAT_RAW, filters=XZ))]
    if item.dtype == np.uint8 and item.ndim == 3 and item.shape[0] in (1, 3):
        file = io.BytesIO()
        Image.fromarray(item[0] if len(item) == 1 else item.transpose(1, 2, 0)).save(file, "PNG", optimize=True)
        found.append(file.tell())
    return found
