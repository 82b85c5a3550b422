"""Solvers of inverse problems with a run of their own: they call the prior, and use the measurement between calls."""

from scorefield.solvers.restoration.daps import DAPS
from scorefield.solvers.restoration.ddrm import DDRM
from scorefield.solvers.restoration.repaint import RePaint
from scorefield.solvers.restoration.split_gibbs import SplitGibbs

__all__ = ["DAPS", "DDRM", "RePaint", "SplitGibbs"]
