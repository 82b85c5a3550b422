"""Solvers of inverse problems with a run of their own: they call the prior, and use the measurement between calls."""
