"""Tasks by name, as on a command line, and what they refuse in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.configs.build import TASKS, build
from scorefield.models.measurements import Linear, Mask, Measurement

SHAPE = (3, 8, 12)


def made(task: str, shape: tuple[int, ...] = SHAPE) -> Measurement:
    measurement: Measurement = build(TASKS, task, shape=shape, cells=(0.0, 1.0))
    return measurement


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("inpaint", (216,)),
        ("inpaint:box=(0,0,4,12)", (144,)),
        ("half:side=top", (144,)),
        ("outpaint:border=2", (96,)),
        ("sense:share=0.25", (72,)),
        ("colourise", (1, 8, 12)),
        ("super_resolve:factor=4", (3, 2, 3)),
        ("super_resolve:factor=3,kernel=gaussian", (3, 3, 4)),
        ("deblur", SHAPE),
        ("deblur:kernel=motion,length=5,angle=30,boundary=reflect", SHAPE),
        ("fourier:acceleration=4", (3, 8, 3)),
        ("phase:oversample=2", (3, 16, 24)),
        ("clip:gain=3", SHAPE),
        ("gamma", SHAPE),
        ("quantise:levels=2", SHAPE),
        ("scorefield.models.measurements.Grey:weights=(1,0,0)", (1, 8, 12)),
    ],
)
def test_a_task_is_named(task: str, shape: tuple[int, ...]) -> None:
    measurement = made(task)
    assert measurement.measured_shape == shape
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    picture = measurement.picture(measurement(x))
    assert measurement(x).shape == (2, *shape)
    assert picture is not None
    assert picture.shape == x.shape


def test_hidden_pixels_are_grey() -> None:
    mask = made("inpaint:box=(0,0,1,1)")
    picture = mask.picture(mask(torch.ones(1, *SHAPE)))
    assert picture is not None
    assert picture[0, :, 0, 0].tolist() == [0.5] * 3
    assert float(picture.sum()) == 3 * (95 + 0.5)


def test_files(tmp_path: Path) -> None:
    white = np.zeros((8, 12), dtype=np.uint8)
    white[2, 3] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", white > 0)
    for name in ("mask.png", "mask.npy"):
        mask = made(f"inpaint:mask='{tmp_path / name}'")
        assert isinstance(mask, Mask)
        assert (~mask.known).nonzero().tolist() == [[c, 2, 3] for c in range(3)]
    np.save(tmp_path / "a.npy", np.eye(2, 3))
    a = made(f"matrix:file='{tmp_path / 'a.npy'}'", (3,))
    assert isinstance(a, Linear)
    assert a(torch.tensor([[1.0, 2, 3]])).tolist() == [[1, 2]]
    Image.fromarray(white).save(tmp_path / "kernel.png")  # a shift by two pixels up and three to the left
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    blurred = made(f"deblur:kernel=file,file='{tmp_path / 'kernel.png'}'")(x)
    torch.testing.assert_close(blurred, x.roll((2 - 4, 3 - 6), (2, 3)))


@pytest.mark.parametrize(
    ("task", "shape", "message"),
    [
        ("inpaint", (7,), "expected images"),
        ("deblur", (7,), "expected images"),
        ("colourise", (1, 8, 8), "choose another task"),
        ("half:side=top", (7,), "expected a side of left, right"),
        ("inpaint:box=(0,0,9,9)", SHAPE, "inside of 8 x 12 pixels"),
        ("inpaint:box=(0,0,8,12)", SHAPE, "hide less"),
        ("outpaint:border=4", SHAPE, "write border=2"),
        ("sense:share=0", SHAPE, "expected a share"),
        ("super_resolve:factor=9", SHAPE, "expected a whole factor from 1 to 8"),
        ("super_resolve:kernel=lanczos", SHAPE, "expected a kernel bicubic"),
        ("deblur:kernel=file", SHAPE, "write deblur:kernel=file,file="),
        ("deblur:boundary=zero", SHAPE, "expected a boundary of circular or reflect"),
        ("deblur:std=0", SHAPE, "write std=3.0"),
        ("fourier:acceleration=0.5", SHAPE, "expected an acceleration"),
        ("phase:oversample=0.5", SHAPE, "expected an oversample"),
        ("clip:gain=0", SHAPE, "expected a gain"),
        ("quantise:levels=1", SHAPE, "expected 2 or more whole levels"),
        ("inpaint:mask=there_is_none.png", SHAPE, "give the path"),
        ("matrix", (7,), "matrix needs file"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(task: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        made(task, shape)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300


def test_files_of_another_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(5, 4))
    with pytest.raises(ValueError, match=r"expected a real matrix \(m, 7\)"):
        made(f"matrix:file='{tmp_path / 'a.npy'}'", (7,))
    with pytest.raises(ValueError, match=r"expected a mask of shape \(8, 12\) or \(3, 8, 12\), got \(5, 4\)"):
        made(f"inpaint:mask='{tmp_path / 'a.npy'}'")
    np.save(tmp_path / "nan.npy", np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="expected finite real numbers"):
        made(f"deblur:kernel=file,file='{tmp_path / 'nan.npy'}'")
