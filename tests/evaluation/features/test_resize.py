"""Resizing for image networks, against closed forms and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import seeded_normal

from scorefield.evaluation.features import resize
from scorefield.evaluation.features.base import StoredAs


def ramp(width: int, height: int = 3) -> torch.Tensor:
    return torch.arange(width, dtype=torch.float32).expand(1, 1, height, width)


@pytest.mark.parametrize("width", [5, 40])
def test_bilinear_recipes_on_a_ramp(width: int) -> None:
    place = torch.arange(10) * width / 10
    expected = place.clamp(max=width - 1)  # x_in = x_out (in / out)
    assert torch.allclose(resize.tensorflow_bilinear(ramp(width), 10)[0, 0, 7], expected)
    assert torch.allclose(resize.tensorflow_bilinear(ramp(width, 7).mT, 10)[0, 0, :, 3], expected)
    centres = ((torch.arange(10) + 0.5) * width / 10 - 0.5).clamp(0, width - 1)
    assert torch.allclose(resize.torch_bilinear(ramp(width), 10)[0, 0, 7], centres)


def test_pillow_in_floats_is_neither_rounded_nor_out_of_range() -> None:
    images = (128 + 100 * seeded_normal("images", (2, 3, 7, 5))).clamp(0, 255).byte()
    found = resize.pillow_bicubic(images.float(), 12)
    as_bytes = resize.pillow_bicubic_bytes(images.float(), 12)
    for image, floats, rounded in zip(images, found, as_bytes, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        whole = np.asarray(Image.fromarray(pixels).resize((12, 12), Image.Resampling.BICUBIC))
        assert torch.equal(rounded, torch.from_numpy(whole.transpose(2, 0, 1).astype(np.float32)))
        plane = Image.fromarray(pixels[:, :, 1].astype(np.float32)).resize((12, 12), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(floats[1], np.asarray(plane).clip(0, 255))
    assert found.min() == 0 and found.max() == 255
    assert not torch.equal(found, found.round())


def test_grey_levels_become_three_channels_of_bytes() -> None:
    stored = torch.tensor([0, 1, 8, 16]).reshape(1, 1, 2, 2)
    found = resize.three_channels(stored, StoredAs((1, 2, 2), 17))
    assert torch.equal(found, torch.tensor([0.0, 16, 128, 255]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2))
