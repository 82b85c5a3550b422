"""Integrators of the probability-flow ODE."""
