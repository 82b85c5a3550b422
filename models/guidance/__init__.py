"""Denoisers that wrap a denoiser: solvers, encoding and likelihood take them unchanged."""

from scorefield.models.guidance.classifier_free import ClassifierFree
from scorefield.models.guidance.inverse_problem import Guided, InverseProblem

__all__ = ["ClassifierFree", "Guided", "InverseProblem"]
