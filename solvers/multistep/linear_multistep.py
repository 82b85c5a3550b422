"""Solvers whose step is linear in the state, the last predictions and noise, with coefficients of the grid."""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.sde_lib import predict_noise
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.exponential import Coefficients, exponential
from scorefield.solvers.scales import Scales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, Solver

PREDICTIONS = ("x0", "eps")
MAX_LOG_GROWTH = 0.5  # a correction at the start may amplify its prediction by e to this at most


class LinearMultistep(Solver):
    """One evaluation a step, and coefficients that depend on the grid only.

    They are computed on the CPU in float64, once for a grid, and enter the loop as plain numbers.

    A solver with a corrector first improves the state that it predicted, by the evaluation at that state (PEC: predict,
    evaluate, correct). This costs no evaluation more.

    A method that starts by lower orders keeps their error. It is then of order 2 wherever the data can be seen at the
    grid's first time. So a deterministic method of order 3 corrects its first step, and one of order 4 its first two,
    with one evaluation more. It does not where `plain_start` says so, or where the first steps are too long.
    """

    order: int = 1  # the most predictions in a step
    predict: str = "x0"  # what a prediction is: "x0" or "eps"
    lower_order_final: bool = False
    plain_start: bool = False

    @property
    def corrects(self) -> bool:
        """Whether it has a corrector."""
        return False

    @property
    def remembers(self) -> bool:
        return self.order > 1 or self.corrects

    @property
    def restartable(self) -> bool:
        return not self.corrects

    @abc.abstractmethod
    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        """The step from time i of the schedule to i + 1, by the `count` predictions at i, i - 1, ..."""

    def correction(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        """The same step by the prediction at i + 1, which comes first, and the `count` last others."""
        raise NotImplementedError(f"{self} has no corrector")

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        before = memory or History()
        predictions = (predict(denoiser, x, schedule[i], self.predict), *before.predictions)
        count = len(before.predictions)
        starting = 0 < count < self.order - 1 and bool(before.states) and self._corrects_start(schedule, i)
        if count and (self.corrects or starting):
            count = self._usable(schedule, i - 1, count)
            repeated = 2 if starting and count == 2 else 1  # steps: order 4 takes both of its first ones again
            step = schedule.cached((self, "repeat", i, count), lambda: self._repeated(schedule, i - repeated, i, count))
            x = combine(step, before.states[repeated - 1], predictions, before.noise_term)
            if starting and self.order == 4 and count == 1:
                predictions = (predict(denoiser, x, schedule[i], self.predict), *before.predictions)
        count = self._usable(schedule, i, len(predictions))
        step = schedule.cached((self, i, count), lambda: self.coefficients(schedule, i, count))
        noise_term = step.noise * noise(x) if self.stochastic else None
        after = combine(step, x, predictions, noise_term)
        return after, History((x, *before.states[:1]), predictions[: self.order], noise_term)

    def _corrects_start(self, schedule: Schedule, i: int) -> bool:
        # Over a long step the integral's kernel, e^h for eps while sampling, amplifies the error of a poor prediction
        # by more than the higher order removes. Steps that long are not corrected.
        h = (schedule.scalars(i).log_snr - schedule.scalars(i - 1).log_snr) / 2
        log_growth = h if self.predict == "eps" else -h
        return log_growth <= MAX_LOG_GROWTH and not (self.plain_start or self.stochastic)

    def _repeated(self, schedule: Schedule, first: int, last: int, count: int) -> Coefficients:
        if last - first == 1 and self.corrects:
            return self.correction(schedule, first, count)
        nodes = [schedule.scalars(last - j) for j in range(count + 1)]
        return exponential(schedule, schedule.scalars(first), schedule.scalars(last), nodes, self.predict)

    def _usable(self, schedule: Schedule, i: int, available: int) -> int:
        left = len(schedule) - 1 - i if self.lower_order_final else self.order
        return min(self.order, available, left)


def predict(denoiser: BoundDenoiser, x: Tensor, at: Scales, what: str) -> Tensor:
    """E[x0 | x] or E[eps | x], shape (B, *D)."""
    if what == "x0":
        return denoiser(x, at.alpha, at.sigma)
    return predict_noise(denoiser, x, at.alpha, at.sigma)


def combine(step: Coefficients, x: Tensor, predictions: Sequence[Tensor], noise_term: Tensor | None = None) -> Tensor:
    """The new state:  of_x x + sum_j weights_j P_j + noise_term."""
    out = step.of_x * x
    for weight, prediction in zip(step.weights, predictions, strict=False):
        out = torch.add(out, prediction, alpha=weight)
    return out if noise_term is None else out + noise_term


def check_order(solver: str, order: int, most: int, predict: str) -> None:
    """Raises ValueError unless 1 <= order <= most, and predict is one of PREDICTIONS."""
    if order not in range(1, most + 1) or predict not in PREDICTIONS:
        raise ValueError(
            f"expected {solver} of order 1 to {most} and predict 'x0' or 'eps', got {order!r} and {predict!r}"
        )
