"""Images for image networks: bytes of three channels, and their resizing by each published recipe.

The recipe is a part of the metric. The same CIFAR-10 images under two of them are as far apart as two data sets.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scorefield.evaluation.features.base import StoredAs

Resize = Callable[[Tensor, int], Tensor]


def require_images(stored_as: StoredAs) -> None:
    """Refuse samples that an image network cannot see.

    Raises:
        ValueError: unless they are images of 1 or 3 channels, with levels.
    """
    if not stored_as.is_image or stored_as.shape[0] not in (1, 3) or stored_as.levels is None:
        kind = "continuous values" if stored_as.levels is None else "levels"
        raise ValueError(
            "expected images of 1 or 3 channels with levels, such as bytes, for features of an image network, got "
            f"samples {stored_as.shape} of {kind}: take --features=random, pixels or own"
        )


def three_channels(stored: Tensor, stored_as: StoredAs) -> Tensor:
    """Stored images (N, C, H, W) as values 0 .. 255 of three channels; a single channel is repeated."""
    return stored_as.bytes(stored).expand(-1, 3, -1, -1)


def channels_note(stored_as: StoredAs) -> str:
    """What a recipe says of the channels: nothing of three."""
    return ", grey repeated to 3 channels" if stored_as.shape[0] == 1 else ""


def tensorflow_bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 has it: x_in = x_out (in / out), with neither half-pixel centres nor antialiasing."""
    return _bilinear(_bilinear(images, size).mT, size).mT


def _bilinear(images: Tensor, size: int) -> Tensor:
    """Along the last axis."""
    width = images.shape[-1]
    place = torch.arange(size, dtype=torch.float32, device=images.device) * (
        torch.tensor(width / size, dtype=torch.float32)
    )
    low = place.long()
    left, right = images[..., low], images[..., (low + 1).clamp(max=width - 1)]
    return left + (right - left) * (place - low)


def torch_bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear as PyTorch has it: half-pixel centres, without antialiasing."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)


def torch_bicubic(images: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, as PyTorch and JAX have it; values may leave 0 .. 255."""
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


def pillow_bicubic(images: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing of each channel in floats by Pillow, clipped to 0 .. 255 and not rounded."""
    planes = _pillow(images.flatten(0, 1), size)
    return planes.reshape(*images.shape[:2], size, size).clamp(0, 255).to(images.device)


def pillow_bicubic_bytes(images: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing of byte images by Pillow, rounded to bytes."""
    pixels = _pillow(images.byte().permute(0, 2, 3, 1), size)
    return pixels.permute(0, 3, 1, 2).float().to(images.device)


def _pillow(arrays: Tensor, size: int) -> Tensor:
    """Each array (H, W), or (H, W, 3) of bytes, in the square of this size."""
    pictures = [Image.fromarray(array) for array in arrays.cpu().numpy()]
    resized = [np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(resized))
