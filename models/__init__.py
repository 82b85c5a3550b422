"""Networks, and what makes a denoiser of them: `(x, alpha, sigma, **cond) -> E[x0 | x]`."""

from models import precondition
from models.analytic import Empirical, Gaussian, GaussianMixture
from models.counting import CountCalls
from models.denoiser import Denoiser
from models.dequantiser import Dequantiser
from models.guidance import ClassifierFree, Conditioned
from models.mlp import MLP
from models.ncsn import NCSN
from models.unet import UNet

__all__ = [
    "MLP",
    "NCSN",
    "ClassifierFree",
    "Conditioned",
    "CountCalls",
    "Denoiser",
    "Dequantiser",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "UNet",
    "precondition",
]
