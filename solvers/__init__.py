"""Ways along a path: `solver(denoiser, sde, x, ts, *, noise, on_step) -> x`, down it to sample, up to encode."""

from solvers import grids
from solvers.adaptive import Adaptive
from solvers.ddim import DDIM
from solvers.dpm import DPMSolver
from solvers.euler_maruyama import EulerMaruyama
from solvers.flow import FlowSolver, probability_flow
from solvers.langevin import AnnealedLangevin
from solvers.noise import PerSampleNoise
from solvers.predictor_corrector import PredictorCorrector
from solvers.runge_kutta import Euler, Heun
from solvers.schedule import Scales, Schedule
from solvers.solver import Progress, Solver

__all__ = [
    "DDIM",
    "Adaptive",
    "AnnealedLangevin",
    "DPMSolver",
    "Euler",
    "EulerMaruyama",
    "FlowSolver",
    "Heun",
    "PerSampleNoise",
    "PredictorCorrector",
    "Progress",
    "Scales",
    "Schedule",
    "Solver",
    "grids",
    "probability_flow",
]
