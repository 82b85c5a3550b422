"""Score-based generative modelling with SDEs and ODEs: train, sample, encode, and compute likelihoods.

The names below are imported on first use. All others are in the folders: `from scorefield.solvers import UniPC`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

FOLDERS = ("configs", "evaluation", "likelihood", "models", "sde_lib", "solvers", "training")
NAMES = {
    "sde_lib": ("VPSDE", "SubVPSDE", "VESDE", "EDMSDE", "CosineSDE", "RectifiedSDE", "DiscreteVPSDE", "SDE"),
    "models": ("Denoiser", "precondition", "Gaussian", "GaussianMixture", "Empirical", "ClassifierFree"),
    "solvers": ("DDIM", "DPMSolver", "UniPC", "Heun", "Ancestral", "PerSampleNoise", "grids", "sample"),
    "likelihood": ("log_likelihood", "elbo", "dsm_bound", "vlb", "Exact", "Hutchinson", "bits_per_dim"),
    "training": ("train", "dsm_loss", "EMA", "times", "weighting"),
}

if TYPE_CHECKING:
    from scorefield.likelihood import Exact, Hutchinson, bits_per_dim, dsm_bound, elbo, log_likelihood, vlb
    from scorefield.models import ClassifierFree, Denoiser, Empirical, Gaussian, GaussianMixture, precondition
    from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedSDE, SubVPSDE
    from scorefield.solvers import DDIM, Ancestral, DPMSolver, Heun, PerSampleNoise, UniPC, grids, sample
    from scorefield.training import EMA, dsm_loss, times, train, weighting

__all__ = [
    "DDIM", "EDMSDE", "EMA", "SDE", "VESDE", "VPSDE", "Ancestral", "ClassifierFree", "CosineSDE", "DPMSolver",
    "Denoiser", "DiscreteVPSDE", "Empirical", "Exact", "Gaussian", "GaussianMixture", "Heun", "Hutchinson",
    "PerSampleNoise", "RectifiedSDE", "SubVPSDE", "UniPC", "bits_per_dim", "dsm_bound", "dsm_loss", "elbo", "grids",
    "log_likelihood", "precondition", "sample", "times", "train", "vlb", "weighting",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in FOLDERS:
        return importlib.import_module(f"scorefield.{name}")
    for folder, names in NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"scorefield.{folder}"), name)
    raise AttributeError(f"module 'scorefield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *FOLDERS, *__all__]
