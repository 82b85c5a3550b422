"""What a loader yields, and data in other units than the model's: one line each, and no digit lost in silence."""

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scorefield.models import MLP, Denoiser
from scorefield.models.precondition import eps
from scorefield.sde_lib import VPSDE
from scorefield.training import train
from scorefield.training.data import array
from scorefield.training.data.units import as_float32, check_float32, odd_units

X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(32) % 3


def losses(loader: Any, denoiser: nn.Module | None = None, num_classes: int | None = None) -> list[float]:
    torch.manual_seed(0)
    denoiser = denoiser or Denoiser(MLP((2,), width=8, num_classes=num_classes), eps)
    return [float(step.loss) for step in train(denoiser, VPSDE(), loader, images=96)]


def test_pairs_of_a_tensor_data_set_are_what_dicts_of_them_are() -> None:
    def loader(*tensors: Tensor) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*tensors), 16)

    assert losses(loader(X)) == losses(list(X.split(16)))
    dicts = [{"x0": x, "label": label} for x, label in zip(X.split(16), LABEL.split(16), strict=True)]
    assert losses(loader(X, LABEL), num_classes=3) == losses(dicts, num_classes=3)
    assert losses(loader(X, LABEL), num_classes=3) != losses(loader(X), num_classes=3)
    with pytest.raises(ValueError, match="no label: the network was made without num_classes; got one: leave it out"):
        losses(loader(X, LABEL))


def test_a_batch_in_another_type_is_trained_on_in_that_of_the_weights() -> None:
    assert losses([X.double()]) == losses([X])
    assert losses([X.bfloat16()]) == losses([X.bfloat16().float()])
    twice = [Denoiser(MLP((2,), width=8), eps).double()]
    twice.append(copy.deepcopy(twice[0]))
    assert losses([X], twice[0]) == losses([X.double()], twice[1])


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        ((X, X), "(x0, label), or as a dict of \"x0\" and the denoiser's keywords, all tensors of one length from 1, "
         "got a tuple of 2: a tensor (32, 2) of float32, a tensor (32, 2) of float32"),
        ((X, LABEL, LABEL), "got a tuple of 3: a tensor (32, 2) of float32, a tensor (32,) of int64"),
        ({"x0": X, "label": LABEL[:5]}, "got a dict of x0: a tensor (32, 2) of float32, label: a tensor (5,) of int64"),
        ({"x": X}, "got a dict of x: a tensor (32, 2) of float32"),
        ({"x0": X, "scale": 3.0}, "got a dict of x0: a tensor (32, 2) of float32, scale: 3.0"),
        (X.tolist(), "(32 in all): yield one of these"),
        (X.numpy(), "got ndarray (32, 2)"),
        (X[:0], "of one length from 1, got a tensor (0, 2) of float32"),
        (X[:, 0], "expected x0 (B, *D), got a tensor (32,) of float32: give each example a dimension"),
        ((X * 9).abs().to(torch.uint8), "got a tensor (32, 2) of uint8: scale integers, as by ToModelRange(256)"),
        (X.to(torch.complex64), "expected real samples, got torch.complex64: make two channels"),
        (torch.where(X > 2, torch.nan, X), "expected finite x0, got NaN or infinity in 2 of the first 32 examples"),
        (X.double() * 1e39, "x0: expected values within float32's range, 3.4e38, got "),
        (1.7e9 + X.double(), "x0: expected digits that float32 can hold, got 1700000000 +- 0.8474 in entry 0 of each"),
    ],
)  # fmt: skip
def test_a_batch_that_is_none_gets_one_line_before_the_first_step(batch: Any, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        losses([batch])
    assert len(str(caught.value)) < 320 and "\n" not in str(caught.value)


def test_training_refuses_a_bare_network_and_exchanged_arguments() -> None:
    with pytest.raises(ValueError, match=re.escape("called with (x, c_noise, label, code): wrap a network")):
        losses([X], MLP((2,), width=8))
    with pytest.raises(ValueError, match="expected a path such as"):
        train(VPSDE(), Denoiser(MLP((2,), width=8), eps), [X], images=32)  # type: ignore[arg-type]


BYTES = torch.randint(0, 256, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(
    ("x", "line"),
    [
        (127 + 73 * X, r"the data is 1\d\d\.?\d* \+- [678]\d\.?\d*, from .* about 0 \+- 1 is expected: subtract"),
        (BYTES, r"from 0 to 255, where .*: these look like 8-bit images: give levels=256"),
        (BYTES * 0.99, r"8-bit images: divide by 127.5 and subtract 1"),
        (0.01 * X, r"subtract the mean"),
        (6 + X, r"subtract the mean"),
        (BYTES / 127.5 - 1, None),
        (BYTES / 255, None),
        (4 * X - 4, None),
        (0.25 * X, None),
    ],
)  # fmt: skip
def test_units_far_from_the_models_are_said_once(x: Tensor, line: str | None) -> None:
    found = odd_units(x)
    assert (found is None) if line is None else (found is not None and re.search(line, found)), found
    if line is not None and x.ndim == 2:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses([x[:16], x[16:]])
        assert len(said) == 1 and re.search("where about 0", str(said[0].message))


SECONDS = 1.7e9 + np.arange(360.0)  # of which float32 keeps 3 or 4


@pytest.mark.parametrize(
    ("x", "line"),
    [
        (SECONDS[:, None], r"got 1700000180 \+- 103.9 in x, whose 360 values become \d: subtract the mean"),
        (np.stack([np.linspace(-1, 1, 360), SECONDS], 1), r"in entry 1 of each item, whose 360 values become \d:"),
        (1.7e9 + np.arange(360.0)[:, None] / 360, r"whose 360 values become 1:"),
        (np.linspace(0, 1, 360)[:, None] * 1e-50, r"expected digits that float32 can hold"),
        (np.full((9, 2), 1e39), r"expected values within float32's range, 3.4e38, got 1e\+39: divide by a scale"),
    ],
)
def test_an_array_whose_digits_or_range_float32_does_not_hold_is_refused(x: Any, line: str, tmp_path: Path) -> None:
    np.save(path := tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=line) as caught:
        array(path)
    assert str(path) in str(caught.value)


def test_digits_that_are_rounding_or_enough_are_no_reason() -> None:
    noise = np.random.default_rng(0)
    check_float32("x", noise.standard_normal((1000, 3)) + 100)
    check_float32("x", noise.random((5000, 1)))
    constant = np.stack([0.1 * np.arange(9.0) / np.arange(9.0).clip(1), noise.random(9)], 1)
    check_float32("x", np.where([[True, False]], 0.3 + 1e-17 * constant, constant))
    check_float32("x", 0.5 + 1e-9 * noise.standard_normal((64, 4)) * [0, 0, 0, 0])
    images = noise.random((64, 1, 8, 8))
    images[:, :, 0] = 0.5 + 1e-9 * images[:, :, 0]  # a border with the noise of resizing
    assert as_float32("x", images).dtype == np.float32
    assert np.isnan(as_float32("x", np.array([[np.nan, 1.0]]))).sum() == 1  # named by the data set


def test_complex_arrays_are_named(tmp_path: Path) -> None:
    np.save(path := tmp_path / "x.npy", np.ones((4, 2), np.complex64))
    with pytest.raises(ValueError, match="expected real numbers, got complex64: save real and imaginary parts as two"):
        array(path)
