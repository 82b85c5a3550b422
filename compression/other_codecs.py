"""What other codecs make of the same images: PNG, xz, and the entropy of single values."""

import io
import lzma
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a PNG


def png_bits(images: NDArray[Any]) -> NDArray[np.int64] | None:
    """Bits of each image (N, C, H, W) of 8 bits as a PNG of its own, (N,); None for what PNG does not take."""
    if images.ndim != 4 or images.shape[1] not in MODES or images.min() < 0 or images.max() > 255:
        return None
    return np.array([8 * len(as_png(image)) for image in images.astype(np.uint8)])


def as_png(image: NDArray[np.uint8]) -> bytes:
    """An image (C, H, W) of 1, 3 or 4 channels as a PNG."""
    channels_last = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(channels_last), MODES[len(image)]).save(file, "PNG", optimize=True)
    return file.getvalue()


def xz_bits(images: NDArray[Any]) -> int:
    """Bits of all values in one xz file, in the smallest type."""
    raw = images.astype(np.min_scalar_type(int(images.max()))).tobytes()
    return 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def entropy_bits(images: NDArray[Any]) -> float:
    """Bits of all values, if each level costs the log of its frequency in them: no code of single values is shorter."""
    counts = np.unique(images, return_counts=True)[1]
    return float((counts * (math.log2(counts.sum()) - np.log2(counts))).sum())
