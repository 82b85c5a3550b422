"""Arrays of files: `.npy`, and pictures."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_array(path: str | Path) -> tuple[Tensor, bool]:
    """The numbers of a file in float64, and whether it is a picture: grey in [0, 1], (H, W).

    Raises:
        ValueError: for a file that cannot be read, or whose numbers are not finite and real.
    """
    file = Path(path).expanduser()
    picture = file.suffix.lower() != ".npy"
    try:
        if picture:
            with Image.open(file) as image:
                array = np.asarray(image.convert("L"), dtype=np.float64) / 255
        else:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"expected a picture or an array .npy in {file}, got {type(error).__name__} ({str(error)[:100]}): give "
            "the path of such a file"
        ) from None
    if array.dtype.kind not in "bifu" or not np.isfinite(array).all():
        raise ValueError(
            f"expected finite real numbers in {file}, got {array.dtype}{' with NaN or inf' * (array.dtype.kind == 'f')}"
            ": save such an array"
        )
    return torch.from_numpy(array.astype(np.float64)), picture
