"""Denoisers that wrap a denoiser: solvers, encoding and likelihood take them unchanged."""

from scorefield.models.guidance.autoguidance import Auto
from scorefield.models.guidance.classifier import ClassifierGuidance
from scorefield.models.guidance.classifier_free import ClassifierFree
from scorefield.models.guidance.ddnm import DDNM
from scorefield.models.guidance.diffpir import DiffPIR
from scorefield.models.guidance.dps import DPS
from scorefield.models.guidance.inverse_problem import Guided, InverseProblem
from scorefield.models.guidance.jacobian_free import JacobianFree
from scorefield.models.guidance.mmps import MMPS
from scorefield.models.guidance.pigdm import PiGDM
from scorefield.models.guidance.posterior_variance import PosteriorVariance
from scorefield.models.guidance.tmpd import TMPD

__all__ = [
    "DDNM",
    "DPS",
    "MMPS",
    "TMPD",
    "Auto",
    "ClassifierFree",
    "ClassifierGuidance",
    "DiffPIR",
    "Guided",
    "InverseProblem",
    "JacobianFree",
    "PiGDM",
    "PosteriorVariance",
]
