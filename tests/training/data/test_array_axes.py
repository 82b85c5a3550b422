"""Arrays of images without channels, or with channels last: read as they are, and said."""

from pathlib import Path

import numpy as np
import pytest

from scorefield.training.data import array
from scorefield.training.data.layout import advice, shape_error


@pytest.mark.parametrize("shape", [(28, 20), (8, 8), (28, 28, 3), (28, 20, 1), (64, 5, 4)])
def test_the_advice_makes_images_of_them(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (10, *shape), np.uint8)
    np.save(tmp_path / "x.npy", x)
    (line,) = array(tmp_path / "x.npy").notes
    assert line.startswith(f"items of shape {shape} are read as {shape[0]} ") and advice(shape) in line
    moved = eval(advice(shape).rpartition(" save ")[2], {"x": x})
    assert moved.ndim == 4 and moved.shape == (10, shape[2] if len(shape) == 3 else 1, *shape[:2])
    channel = moved.shape[1] - 1
    assert (moved[3, channel] == (x[3, ..., channel] if len(shape) == 3 else x[3])).all()
    np.save(tmp_path / "x.npy", moved)
    assert array(tmp_path / "x.npy").notes == ()


@pytest.mark.parametrize(
    "shape", [(5,), (2, 300), (3, 28, 28), (1, 8, 8), (4, 20, 3), (3, 3, 3), (16, 8, 8), (1, 2, 3, 4)]
)
def test_other_shapes_have_no_advice(shape: tuple[int, ...]) -> None:
    assert advice(shape) == ""


def test_series_of_real_numbers_are_no_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10, 12, 500), np.float32))
    assert array(tmp_path / "x.npy").notes == ()


@pytest.mark.parametrize(
    ("got", "remedy"),
    [((20, 28, 3), "x.transpose(0, 3, 1, 2)"), ((28, 20, 3), None), ((3, 28, 20), None), ((20, 28), None)],
)
def test_a_remedy_is_given_only_where_it_makes_the_shape(got: tuple[int, ...], remedy: str | None) -> None:
    line = str(shape_error("x", (3, 20, 28), got))
    assert line.endswith(f"in x: save {remedy}" if remedy else "in x: give data of that shape")
