"""A solver's step, then Langevin steps at the level it reached."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_lib.broadcast import DenoiserLike
from sde_lib.sde import Noise
from solvers.langevin import AnnealedLangevin
from solvers.schedule import Schedule
from solvers.solver import Solver


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Predictor-corrector sampling (Song et al. 2021, Alg. 1: predict, then correct).

    Args:
        predictor: any solver that goes step by step; a multistep one extrapolates the corrector's noise too, which
            costs accuracy at few steps.
        corrector: Langevin dynamics, usually by `snr`; its last denoising is not used.
    """

    predictor: Solver
    corrector: AnnealedLangevin

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        x, memory = self.predictor.step(denoiser, x, schedule, i, noise, memory)
        return self.corrector.correct(denoiser, x, schedule, i + 1, noise), memory
