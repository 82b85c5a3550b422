"""A solver's step, then Langevin steps at the level it reached."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.belm import BELM
from scorefield.solvers.multistep.linear_multistep import LinearMultistep, Past
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.sde.adaptive_sde import AdaptiveSDE
from scorefield.solvers.sde.langevin import AnnealedLangevin
from scorefield.solvers.solver import Solver

ORDERS = ("predict_first", "correct_first")


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Predictor-corrector sampling (Song et al. 2021, Alg. 1: predict, then correct).

    Args:
        predictor: any solver that goes step by step; a multistep one extrapolates the corrector's noise too, which
            costs accuracy at few steps.
        corrector: Langevin dynamics, usually by `snr`; its last denoising is not used.
        order: "predict_first" as in the paper, which ends on a correction, or "correct_first" as in its released
            code, which corrects at each level before it leaves it, and ends on a prediction.

    Raises:
        ValueError: for another order, or a predictor that is none.
    """

    predictor: Solver
    corrector: AnnealedLangevin
    order: str = "predict_first"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"expected order 'predict_first' or 'correct_first', got {self.order!r}")
        if isinstance(self.predictor, BELM) or (
            isinstance(self.predictor, LinearMultistep) and self.predictor.corrects
        ):
            raise ValueError(
                f"{self.predictor} goes on from states that the Langevin corrector has left: "
                "use corrector=False where it has one, or DPMSolver() or EulerMaruyama()"
            )
        if isinstance(self.predictor, AdaptiveSDE):
            raise ValueError(
                "AdaptiveSDE draws noise for as long as any sample of the batch has steps to take, so the corrector's "
                "would depend on its mates: use EulerMaruyama(), or Adaptive() for adaptive steps along the flow"
            )
        if isinstance(self.predictor, AnnealedLangevin | PredictorCorrector):
            raise ValueError(
                f"{type(self.predictor).__name__} corrects and does not predict: use EulerMaruyama(), DDIM() or "
                "another solver as the predictor, and steps= of the corrector for more of it"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def splits_batch(self) -> bool:
        return self.predictor.splits_batch

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        if isinstance(memory, Past):
            memory = memory._replace(states=())  # the corrector has left them
        if self.order == "correct_first":
            x = self.corrector.correct(denoiser, x, schedule, i, noise)
            return self.predictor.step(denoiser, x, schedule, i, noise, memory)
        x, memory = self.predictor.step(denoiser, x, schedule, i, noise, memory)
        return self.corrector.correct(denoiser, x, schedule, i + 1, noise), memory
