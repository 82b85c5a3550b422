"""Samples and references to numbers and pictures."""

from scorefield.evaluation.pictures import save_bars, save_curve, save_labelled_rows, save_pictures, save_rows
from scorefield.evaluation.probe import DigitProbe
from scorefield.evaluation.side_by_side import save_panels

__all__ = ["DigitProbe", "save_bars", "save_curve", "save_labelled_rows", "save_panels", "save_pictures", "save_rows"]
