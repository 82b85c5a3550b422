"""Pictures and numbers of samples."""

from scorefield.evaluation.pictures import save_bars, save_curve, save_labelled_rows, save_pictures, save_rows
from scorefield.evaluation.probe import DigitProbe
from scorefield.evaluation.side_by_side import save_side_by_side

__all__ = [
    "DigitProbe",
    "save_bars",
    "save_curve",
    "save_labelled_rows",
    "save_pictures",
    "save_rows",
    "save_side_by_side",
]
