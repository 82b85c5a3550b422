"""Measurements `x0 (B, *D) -> y (B, *M)` of inverse problems."""

from scorefield.models.measurements import kernels, masks, tasks
from scorefield.models.measurements.base import Linear, Measurement
from scorefield.models.measurements.blur import Blur
from scorefield.models.measurements.colour import Grey
from scorefield.models.measurements.fourier import Fourier
from scorefield.models.measurements.function import Function, LinearFunction
from scorefield.models.measurements.masks import Mask
from scorefield.models.measurements.matrix import Matrix
from scorefield.models.measurements.nonlinear import Clip, Gamma, Magnitude, Quantise
from scorefield.models.measurements.resample import Bicubic, Downsample, Pool, Resample
from scorefield.models.measurements.svd import SVD

__all__ = [
    "SVD", "Bicubic", "Blur", "Clip", "Downsample", "Fourier", "Function", "Gamma", "Grey", "Linear", "LinearFunction",
    "Magnitude", "Mask", "Matrix", "Measurement", "Pool", "Quantise", "Resample", "kernels", "masks", "tasks",
]  # fmt: skip
