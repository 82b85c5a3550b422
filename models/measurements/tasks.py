"""Measurements by the names of the tasks that they pose, for command lines.

`shape` is that of one sample. `cells` is the range (low, high) of the data's values.
"""

import functools
from pathlib import Path

from torch import Tensor

from scorefield.models.measurements import kernels, masks
from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.blur import Blur
from scorefield.models.measurements.colour import Grey
from scorefield.models.measurements.masks import Mask
from scorefield.models.measurements.matrix import Matrix, read_matrix
from scorefield.models.measurements.nonlinear import Clip, Gamma, Magnitude, Quantise
from scorefield.models.measurements.resample import Bicubic, Downsample, Pool, Resample, gaussian_weights
from scorefield.models.measurements.shapes import as_image

RANGE = (-1.0, 1.0)
Cells = tuple[float, float]
Shape = tuple[int, ...]


def inpaint(
    shape: Shape, cells: Cells = RANGE, box: tuple[int, ...] | None = None, mask: str | None = None
) -> Mask:  # fmt: skip
    """A box (top, left, bottom, right) is hidden, or what is white in a mask's file; without both a centred box."""
    if box is not None and mask is not None:
        raise ValueError("expected a box or a mask, got both: leave one out")
    return _masked(masks.box(shape, box) if mask is None else masks.read_mask(mask), shape, cells)


def half(shape: Shape, cells: Cells = RANGE, side: str = "right") -> Mask:
    """The left, right, top or bottom half is hidden."""
    return _masked(masks.half(shape, side), shape, cells)


def outpaint(shape: Shape, cells: Cells = RANGE, border: int = 4) -> Mask:
    """A border of `border` pixels is hidden."""
    return _masked(masks.border(shape, border), shape, cells)


def sense(shape: Shape, cells: Cells = RANGE, share: float = 0.3, seed: int = 0) -> Mask:
    """A share of the pixels is measured, drawn once."""
    return _masked(masks.random(shape, share, seed), shape, cells)


def colourise(shape: Shape, weights: tuple[float, ...] | None = None) -> Grey:
    """The grey value of each pixel is measured."""
    channels, *_ = as_image(shape, "colourise")
    if channels == 1:
        raise ValueError(f"expected images with colours for colourise, got shape {tuple(shape)}: choose another task")
    return Grey(shape, weights)


def super_resolve(
    shape: Shape, factor: int = 4, kernel: str = "bicubic", std: float = 0.5, file: str | None = None
) -> Linear:  # fmt: skip
    """A smaller image by a kernel bicubic, box, gaussian (of a std in its pixels) or file (of a kernel's file)."""
    if kernel == "gaussian":
        if not std > 0:
            raise ValueError(f"expected a std above 0 for a gaussian kernel, got {std}: write std=0.5")
        return Resample(shape, factor, functools.partial(gaussian_weights, std=std))
    if kernel == "file":
        return Downsample(shape, factor, _kernel_of(file, "super_resolve"))
    if kernel not in ("bicubic", "box"):
        raise ValueError(f"expected a kernel bicubic, box, gaussian or file, got {kernel!r}: write kernel=bicubic")
    return Bicubic(shape, factor) if kernel == "bicubic" else Pool(shape, factor)


def deblur(
    shape: Shape, kernel: str = "gaussian", std: float = 3.0, size: int = 5, length: float = 9.0, angle: float = 0.0,
    file: str | None = None, boundary: str = "circular",
) -> Blur:  # fmt: skip
    """Blurred by a kernel gaussian (std), box (size), motion (length in pixels, angle in degrees) or file."""
    kinds = {
        "gaussian": lambda: kernels.gaussian(std),
        "box": lambda: kernels.box(size),
        "motion": lambda: kernels.motion(length, angle),
        "file": lambda: _kernel_of(file, "deblur"),
    }
    if kernel not in kinds:
        raise ValueError(f"expected a kernel of {', '.join(kinds)}, got {kernel!r}: write kernel=gaussian")
    return Blur(shape, kinds[kernel](), boundary)


def phase(shape: Shape, cells: Cells = RANGE, oversample: float = 2.0) -> Magnitude:
    """The magnitudes of an oversampled Fourier transform are measured."""
    return Magnitude(shape, oversample, *cells)


def clip(shape: Shape, cells: Cells = RANGE, gain: float = 2.0) -> Clip:
    """The contrast is `gain` times as high, and clipped to the data's range."""
    return Clip(shape, gain, *cells)


def gamma(shape: Shape, cells: Cells = RANGE, exponent: float = 2.2) -> Gamma:
    """Values of the data's range as a power of their place in it."""
    return Gamma(shape, exponent, *cells)


def quantise(shape: Shape, cells: Cells = RANGE, levels: int = 4) -> Quantise:
    """Values rounded to `levels` values of the data's range."""
    return Quantise(shape, levels, *cells)


def matrix(shape: Shape, file: str) -> Matrix:
    """A matrix (m, d) of a file .npy times the sample."""
    return read_matrix(Path(file), shape)


def _masked(known: Tensor, shape: Shape, cells: Cells) -> Mask:
    return Mask(known, shape, hidden=sum(cells) / 2)


def _kernel_of(file: str | None, task: str) -> Tensor:
    if file is None:
        raise ValueError(f"expected the file of a kernel, got none: write {task}:kernel=file,file=kernel.npy")
    return kernels.read_kernel(file)
