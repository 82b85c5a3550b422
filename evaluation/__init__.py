"""Samples and references to numbers and pictures."""

from evaluation.panels import save_panels
from evaluation.pictures import save_bars, save_curve, save_labelled_rows, save_pictures, save_rows
from evaluation.probe import DigitProbe

__all__ = ["DigitProbe", "save_bars", "save_curve", "save_labelled_rows", "save_panels", "save_pictures", "save_rows"]
