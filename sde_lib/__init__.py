"""Functions of time: a path `t -> (alpha, sigma)` and everything that follows from it."""

from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.denoiser import predict_noise, predict_x0
from scorefield.sde_lib.discrete import DiscreteVPSDE
from scorefield.sde_lib.learned import FrozenVP, LearnedVP
from scorefield.sde_lib.multivariate import MultivariateVP, PerDimensionVP
from scorefield.sde_lib.paths import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE
from scorefield.sde_lib.sde import SDE

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineSDE",
    "DiscreteVPSDE",
    "FrozenVP",
    "LearnedVP",
    "MultivariateVP",
    "PerDimensionVP",
    "RectifiedSDE",
    "SubVPSDE",
    "expand",
    "predict_noise",
    "predict_x0",
]
