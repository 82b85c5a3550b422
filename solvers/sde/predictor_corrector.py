"""A solver's step, then Langevin steps at the level it reached."""

from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.sde.langevin import AnnealedLangevin
from scorefield.solvers.solver import History, Solver

ORDERS = ("predict_first", "correct_first")


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Predictor-corrector sampling (Song et al. 2021, Alg. 1: predict, then correct).

    Args:
        predictor: any restartable solver. A multistep one also extrapolates the corrector's noise, which costs accuracy
            at few steps.
        corrector: Langevin dynamics, usually by `snr`. Its last denoising is not used.
        order: "predict_first" as in the paper: it ends on a correction. "correct_first" as in its released code: it
            corrects at each level before the step from it, and ends on a prediction.

    Raises:
        ValueError: for another order, or a predictor that is not restartable.
    """

    predictor: Solver
    corrector: AnnealedLangevin
    order: str = "predict_first"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"expected order 'predict_first' or 'correct_first', got {self.order!r}")
        if not self.predictor.restartable:
            raise ValueError(
                f"expected a predictor that can start from a state that a corrector has moved, got {self.predictor}: "
                "use EulerMaruyama(), DDIM() or DPMSolver(), and corrector=False for a solver with a corrector"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def restartable(self) -> bool:
        return False

    @property
    def splits_batch(self) -> bool:
        return self.predictor.splits_batch

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        if memory is not None:
            memory = memory._replace(states=())  # the corrector has moved x since
        if self.order == "correct_first":
            x = self.corrector.correct(denoiser, x, schedule, i, noise)
            return self.predictor.step(denoiser, x, schedule, i, noise, memory)
        x, memory = self.predictor.step(denoiser, x, schedule, i, noise, memory)
        return self.corrector.correct(denoiser, x, schedule, i + 1, noise), memory
