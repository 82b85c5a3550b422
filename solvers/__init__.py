"""Ways along a path: `solver(denoiser, sde, x, ts, *, noise, on_step) -> x`, down it to sample, up to encode."""

from solvers import clocks, grids
from solvers.adams import DEIS, Adams, StochasticAdams
from solvers.adams_moulton import AdamsMoulton
from solvers.adaptive import Adaptive
from solvers.adaptive_sde import AdaptiveSDE
from solvers.belm import BELM
from solvers.churn import Churn
from solvers.ddim import DDIM, Ancestral, ConsistentAnnealed
from solvers.dpm import DPMSolver, StochasticDPMSolver
from solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion
from solvers.flow import FlowSolver, probability_flow
from solvers.langevin import AnnealedLangevin
from solvers.linear import LinearSolver
from solvers.measured import step_density
from solvers.noise import PerSampleNoise
from solvers.predictor_corrector import PredictorCorrector
from solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from solvers.schedule import Scales, Schedule
from solvers.solver import Progress, Solver
from solvers.trajectory import Trajectory
from solvers.unipc import UniPC

__all__ = [
    "BELM", "DDIM", "DEIS", "RK4", "Adams", "AdamsMoulton", "Adaptive", "AdaptiveSDE", "Ancestral",
    "AnnealedLangevin", "Churn", "ConsistentAnnealed", "DPMSolver", "Euler", "EulerMaruyama", "FlowSolver", "Heun",
    "LinearSolver", "Midpoint", "PerSampleNoise", "PredictorCorrector", "Progress", "ReverseDiffusion", "RungeKutta",
    "Scales", "Schedule", "Solver", "StochasticAdams", "StochasticDPMSolver", "Trajectory", "UniPC", "clocks",
    "grids", "probability_flow", "step_density",
]  # fmt: skip
