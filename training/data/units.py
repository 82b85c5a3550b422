"""Values as networks take them: checks of what a loader yields, of its units, and of the digits that float32 keeps."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.sde_lib.arguments import check_samples, shown
from scorefield.training.data.batches import ToModelRange, tensor
from scorefield.training.data.dataset import Dataset, evenly_spaced

# Deviations and means for which paths with noise levels of 0.01 to 80 are made.
LEAST, MOST = 0.2, 5.0
VALUES = 1 << 17  # of a data set, in which they are measured

# A column is lost where rounding is LOST of its deviation, the smallest noise level of most paths. One whose deviation
# is FAINT of the widest column's does not count: there is nothing to learn.
LOST, FAINT = 0.01, 1e-6
SAMPLE = 1 << 20  # values whose digits are compared


def as_batch(batch: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """A loader's batch as a dict: of a tensor x0, of (x0,) or (x0, label) as a TensorDataset has them, or of a dict.

    Raises:
        ValueError: for anything else, or tensors of different lengths.
    """
    named: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        named = dict(batch)
    elif isinstance(batch, Tensor):
        named = {"x0": batch}
    elif isinstance(batch, Sequence) and len(batch) in (1, 2):
        named = dict(zip(("x0", "label"), batch, strict=False))
        if len(batch) == 2 and (not isinstance(batch[1], Tensor) or batch[1].is_floating_point() or batch[1].ndim != 1):
            named = {}
    lengths = {len(value) if isinstance(value, Tensor) and value.ndim else -1 for value in named.values()}
    if "x0" not in named or len(lengths) != 1 or min(lengths) < 1:
        raise ValueError(
            'expected a batch as a tensor x0, as (x0, label), or as a dict of "x0" and the denoiser\'s keywords, all '
            f"tensors of one length from 1, got {shown(batch)}: yield one of these"
        )
    return named


class FirstBatch:
    """Data of a loader in the type of the weights; the first batch is looked at, and odd units are warned of once."""

    def __init__(self) -> None:
        self._looked = False

    def __call__(self, x0: Tensor, dtype: torch.dtype) -> Tensor:
        """`x0 (B, *D)` in `dtype`.

        Raises:
            ValueError: for integers and complex numbers. For a first batch also: where a dimension is missing, values
                are not finite, or the type keeps too few digits.
        """
        if not x0.is_floating_point() and not x0.is_complex():
            raise ValueError(
                f"expected floating-point x0 in the model's values, got {shown(x0)}: scale integers, as by "
                "ToModelRange(256)(x0, generator) to -1 .. 1"
            )
        check_samples(x0)
        if not self._looked:
            self._looked = True
            _look(x0, dtype)
        return x0.to(dtype)


def _look(x0: Tensor, dtype: torch.dtype) -> None:
    if x0.ndim < 2:
        raise ValueError(f"expected x0 (B, *D), got {shown(x0)}: give each example a dimension, as in x0[:, None]")
    bad = (~x0.isfinite()).flatten(1).any(1)
    if bool(bad.any()):
        raise ValueError(
            f"expected finite x0, got NaN or infinity in {int(bad.sum())} of the first {len(x0)} examples: remove them"
        )
    if x0.dtype == torch.float64 and dtype == torch.float32:
        as_float32("x0", x0.cpu().numpy())
    if line := odd_units(x0):
        warnings.warn(line, stacklevel=2)


def odd_units(x: Tensor) -> str | None:
    """A line if the model's values (N, *D) are far from a mean of 0 and a deviation of 1, else None."""
    if x.numel() == 0:
        return None
    x = x.float()
    mean, std, low, high = float(x.mean()), float(x.std(correction=0)), float(x.min()), float(x.max())
    if LEAST <= std <= MOST and abs(mean) <= MOST:
        return None
    fix = "subtract the mean and divide by the deviation, or correct levels and transform (see --mode=check_data)"
    if low >= 0 and 32 < high <= 255:
        integers = bool((x == x.round()).all())
        fix = f"these look like 8-bit images: {'give levels=256' if integers else 'divide by 127.5 and subtract 1'}"
    return f"the data is {mean:.4g} +- {std:.4g}, from {low:.4g} to {high:.4g}, where about 0 +- 1 is expected: {fix}"


def odd_units_of(dataset: Dataset, low: float, high: float) -> str | None:
    """`odd_units` of some items of a data set, as the model gets them."""
    count = max(8, VALUES // math.prod(dataset.shape))
    stored = tensor(dataset.x[evenly_spaced(len(dataset), count)])
    return odd_units(ToModelRange(dataset.levels, low, high, dequantise=False)(stored, torch.Generator()))


def as_float32(name: object, x: NDArray[Any]) -> NDArray[np.float32]:
    """An array (N, *D) in float32.

    Raises:
        ValueError: as `check_float32`.
    """
    check_float32(name, x)
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def check_float32(name: object, x: NDArray[Any]) -> None:
    """Raises ValueError if, in a sample of rows, float32 does not hold a value or rounds it by 0.01 deviations."""
    if x.dtype != np.float64 or x.size == 0:
        return
    rows = evenly_spaced(len(x), max(16, SAMPLE // x[0].size))
    columns = x[rows].reshape(len(rows), -1)
    with np.errstate(all="ignore"):
        kept = columns.astype(np.float32)
        rounding, std = np.abs(columns - kept).max(0), columns.std(0)
        lost = (rounding > LOST * std) & (std > FAINT * std.max())
    beyond = np.isinf(kept) & np.isfinite(columns)
    if beyond.any():
        raise ValueError(
            f"{name}: expected values within float32's range, 3.4e38, got {columns[beyond][0]:.3g}: divide by a scale"
        )
    if lost.any():
        worst = int(lost.argmax())
        column, after = columns[:, worst], kept[:, worst]
        where = "x" if columns.shape[1] == 1 else f"entry {worst} of each item"
        raise ValueError(
            f"{name}: expected digits that float32 can hold, got {column.mean():.10g} +- {std[worst]:.4g} in {where}, "
            f"whose {len(np.unique(column))} values become {len(np.unique(after))}: subtract the mean, divide by the "
            "deviation"
        )
