"""Denoisers that wrap a denoiser: solvers, encoding and likelihood take them unchanged."""

from scorefield.models.guidance.classifier_free import ClassifierFree
from scorefield.models.guidance.dps import DPS
from scorefield.models.guidance.inverse_problem import Guided, InverseProblem
from scorefield.models.guidance.mmps import MMPS
from scorefield.models.guidance.pigdm import PiGDM

__all__ = ["DPS", "MMPS", "ClassifierFree", "Guided", "InverseProblem", "PiGDM"]
