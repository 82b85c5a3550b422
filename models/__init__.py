"""Networks, and what makes a denoiser of them: `(x, alpha, sigma, **cond) -> E[x0 | x]`."""

from models import precondition
from models.adm import ADM
from models.analytic import Empirical, Gaussian, GaussianMixture
from models.counting import CountCalls
from models.denoiser import Denoiser
from models.dequantiser import Dequantiser
from models.dit import DiT
from models.guidance import ClassifierFree, Conditioned
from models.mlp import MLP
from models.ncsn import NCSN
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from models.unet import UNet
from models.vdm import VDM

__all__ = [
    "ADM",
    "MLP",
    "NCSN",
    "VDM",
    "ClassifierFree",
    "Conditioned",
    "CountCalls",
    "Denoiser",
    "Dequantiser",
    "DiT",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "NCSNpp",
    "NCSNv2",
    "UNet",
    "precondition",
]
