"""Pictures and numbers of samples."""

from scorefield.evaluation.curves import plot_curves, plot_front, plot_histogram, plot_histograms, plot_panels
from scorefield.evaluation.pictures import plot_overview, plot_rows, plot_samples
from scorefield.evaluation.probe import DigitProbe

__all__ = [
    "DigitProbe",
    "plot_curves",
    "plot_front",
    "plot_histogram",
    "plot_histograms",
    "plot_overview",
    "plot_panels",
    "plot_rows",
    "plot_samples",
]
