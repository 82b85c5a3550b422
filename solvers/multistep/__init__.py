"""Solvers with one evaluation a step and coefficients that the grid decides."""
