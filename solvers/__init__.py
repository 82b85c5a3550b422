"""Solvers along a path: `solver(denoiser, sde, x, ts, *, cond, noise, on_step) -> x`, to sample and to encode."""

from scorefield.solvers import grids, variables
from scorefield.solvers.adaptive_grid import step_density
from scorefield.solvers.edit import recondition, sdedit, time_of_strength
from scorefield.solvers.multistep.adams import DEIS, Adams, SASolver, StochasticAdams
from scorefield.solvers.multistep.belm import BELM
from scorefield.solvers.multistep.ddim import DDIM, Ancestral, ConsistentAnnealed
from scorefield.solvers.multistep.dpm import DPMSolver, StochasticDPMSolver
from scorefield.solvers.multistep.linear_multistep import LinearMultistep
from scorefield.solvers.multistep.unipc import UniPC
from scorefield.solvers.noise import PerSampleNoise
from scorefield.solvers.ode.adams_moulton import AdamsMoulton
from scorefield.solvers.ode.adaptive import Adaptive
from scorefield.solvers.ode.flow import FlowSolver, probability_flow
from scorefield.solvers.ode.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from scorefield.solvers.restoration import DAPS, DDRM, RePaint, SplitGibbs
from scorefield.solvers.sample import sample
from scorefield.solvers.scales import Scales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.sde.adaptive_sde import AdaptiveSDE
from scorefield.solvers.sde.churn import Churn
from scorefield.solvers.sde.euler_maruyama import EulerMaruyama, ReverseDiffusion
from scorefield.solvers.sde.langevin import AnnealedLangevin
from scorefield.solvers.sde.predictor_corrector import PredictorCorrector
from scorefield.solvers.solver import History, Progress, Solver
from scorefield.solvers.trajectory import Trajectory
from scorefield.solvers.twisted import Particles, Twisted, effective_sample_size

__all__ = [
    "BELM",
    "DAPS",
    "DDIM",
    "DDRM",
    "DEIS",
    "RK4",
    "Adams",
    "AdamsMoulton",
    "Adaptive",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "Churn",
    "ConsistentAnnealed",
    "DPMSolver",
    "Euler",
    "EulerMaruyama",
    "FlowSolver",
    "Heun",
    "History",
    "LinearMultistep",
    "Midpoint",
    "Particles",
    "PerSampleNoise",
    "PredictorCorrector",
    "Progress",
    "RePaint",
    "ReverseDiffusion",
    "RungeKutta",
    "SASolver",
    "Scales",
    "Schedule",
    "Solver",
    "SplitGibbs",
    "StochasticAdams",
    "StochasticDPMSolver",
    "Trajectory",
    "Twisted",
    "UniPC",
    "effective_sample_size",
    "grids",
    "probability_flow",
    "recondition",
    "sample",
    "sdedit",
    "step_density",
    "time_of_strength",
    "variables",
]  # fmt: skip
