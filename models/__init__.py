"""Networks, and what makes a denoiser of them: `(x, alpha, sigma, **cond) -> E[x0 | x]`."""

from scorefield.models import precondition
from scorefield.models.analytic import Empirical, Gaussian, GaussianMixture
from scorefield.models.counting import CountCalls
from scorefield.models.denoiser import Denoiser
from scorefield.models.guidance import (
    DDNM,
    DPS,
    MMPS,
    TMPD,
    ClassifierFree,
    DiffPIR,
    Guided,
    InverseProblem,
    JacobianFree,
    PiGDM,
)
from scorefield.models.networks.adm import ADM
from scorefield.models.networks.autoencoder import KLAutoencoder, VQAutoencoder
from scorefield.models.networks.dequantiser import Dequantiser
from scorefield.models.networks.dit import DiT
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsn import NCSN
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.ncsnv2 import NCSNv2
from scorefield.models.networks.noisy_classifier import NoisyClassifier
from scorefield.models.networks.tiny_autoencoder import TinyAutoencoder
from scorefield.models.networks.unet import UNet
from scorefield.models.networks.vdm import VDM

__all__ = [
    "ADM",
    "DDNM",
    "DPS",
    "MLP",
    "MMPS",
    "NCSN",
    "TMPD",
    "VDM",
    "ClassifierFree",
    "CountCalls",
    "Denoiser",
    "Dequantiser",
    "DiT",
    "DiffPIR",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "InverseProblem",
    "JacobianFree",
    "KLAutoencoder",
    "NCSNpp",
    "NCSNv2",
    "NoisyClassifier",
    "PiGDM",
    "TinyAutoencoder",
    "UNet",
    "VQAutoencoder",
    "precondition",
]
