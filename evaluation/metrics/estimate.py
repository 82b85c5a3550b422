"""A number with its error."""

from typing import NamedTuple


class Estimate(NamedTuple):
    """A metric of a finite set of samples.

    Args:
        value: in the metric's own unit.
        standard_error: of the value, over new draws of the samples; nan where it is not known.
    """

    value: float
    standard_error: float = float("nan")
