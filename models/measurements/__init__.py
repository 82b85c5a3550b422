"""Measurements `x0 (B, *D) -> y (B, *M)` of inverse problems."""

from scorefield.models.measurements.base import SVD, Linear, Measurement
from scorefield.models.measurements.function import Function, LinearFunction

__all__ = ["SVD", "Function", "Linear", "LinearFunction", "Measurement"]
