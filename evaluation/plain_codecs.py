"""The lengths to which codecs that know no data set compress images: of one, how complex it is."""

import io
import lzma

import numpy as np
from numpy.typing import NDArray
from PIL import Image

XZ = ({"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20},)


def plain_lengths(stored: NDArray[np.integer], levels: int) -> NDArray[np.float64]:
    """Bits of each item alone, the shorter of PNG and xz, (N,).

    It is the L(x) of Serra et al. 2020, "Input complexity and out-of-distribution detection with likelihood-based
    generative models", with two codecs.

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
        found.append(len(as_png(item)))
    return found


def as_png(image: NDArray[np.integer]) -> bytes:
    """An image (C, H, W) of 8 bits and 1, 3 or 4 channels as the bytes of a PNG."""
    file = io.BytesIO()
    image = image.astype(np.uint8)
    channels_last = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(channels_last)).save(file, "PNG", optimize=True)
    return file.getvalue()


def png_bits(stored: NDArray[np.integer]) -> int | None:
    """Bits of all images (N, C, H, W), each as a PNG of its own; None for what is no image of 8 bits."""
    if stored.ndim != 4 or stored.shape[1] not in (1, 3, 4) or stored.max() > 255:
        return None
    return sum(8 * len(as_png(image)) for image in stored)


def xz_bits(stored: NDArray[np.integer]) -> int:
    """Bits of all values together in one xz file."""
    raw = stored.astype(np.min_scalar_type(int(stored.max()))).tobytes()
    return 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def entropy_bits(stored: NDArray[np.integer]) -> float:
    """Bits of all values, if each level costs the log of its frequency in them: no code of single values is shorter."""
    counts = np.unique(stored, return_counts=True)[1]
    return float((counts * (np.log2(counts.sum()) - np.log2(counts))).sum())
