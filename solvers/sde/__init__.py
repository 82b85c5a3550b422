"""Solvers that add noise: the reverse-time SDE and Langevin dynamics."""
