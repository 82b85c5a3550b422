"""Solvers whose step is a line of numbers: the state, the last predictions, and noise, each times a coefficient."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefield.sde_lib import predict_noise
from scorefield.sde_lib.denoiser import BoundDenoiser, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.exponential import Line, exponential
from scorefield.solvers.schedule import Scales, Schedule
from scorefield.solvers.solver import Solver

PREDICTIONS = ("x0", "eps")
GROWTH = 0.5  # log of the most that a correction at the start may amplify the prediction it rests on


class Past(NamedTuple):
    """What the next step needs: the last states and predictions, newest first, and the noise of the last step.

    Without states no step is taken again: for whoever moves x between steps.
    """

    states: tuple[Tensor, ...]
    predictions: tuple[Tensor, ...]
    jolt: Tensor | None


class LinearMultistep(Solver):
    """One evaluation a step, and coefficients that depend on the grid alone.

    They are computed on the CPU in float64, once for a grid, and enter the loop as plain numbers.

    A solver with a corrector improves the state it predicted by the evaluation made there, before going on from it
    (PEC: predict, evaluate, correct), which costs no evaluation more. A deterministic one of order 3 does so in its
    first step at least, and one of order 4 in its first two and with one evaluation more, unless it is asked for a
    plain start or `_corrects_start` advises against it: a method that is begun by lower orders alone keeps their error,
    and is of order 2 wherever the data can be seen at the grid's first time.
    """

    order: int = 1  # of how many predictions a step may make use
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

    @abc.abstractmethod
    def line(self, schedule: Schedule, i: int, past: int) -> Line:
        """The step from time i of the schedule to i + 1, by the predictions at i, i - 1, ..., `past` of them."""

    def correction(self, schedule: Schedule, i: int, past: int) -> Line:
        """The same step again with the prediction at i + 1 as well, which comes first, and the last `past` others."""
        raise NotImplementedError(f"{self} has no corrector")

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        before: Past = memory or Past((), (), None)
        predictions = (predict(denoiser, x, schedule[i], self.predict), *before.predictions)
        past = len(before.predictions)
        starting = 0 < past < self.order - 1 and bool(before.states) and self._corrects_start(schedule, i)
        if past and (self.corrects or starting):
            past = self._usable(schedule, i - 1, past)
            over = 2 if starting and past == 2 else 1  # steps taken again: order 4 begins with both of its first
            line = schedule.once((self, "again", i, past), lambda: self._again(schedule, i - over, over, past))
            x = combine(line, before.states[over - 1], predictions, before.jolt)
            if starting and self.order == 4 and past == 1:
                predictions = (predict(denoiser, x, schedule[i], self.predict), *before.predictions)
        past = self._usable(schedule, i, len(predictions))
        line = schedule.once((self, i, past), lambda: self.line(schedule, i, past))
        jolt = line.noise * noise(x) if self.stochastic else None
        after = combine(line, x, predictions, jolt)
        return after, Past((x, *before.states[:1]), predictions[: self.order], jolt)

    def _corrects_start(self, schedule: Schedule, i: int) -> bool:
        # Over a long step the integral's kernel, e^h for eps on the way down, makes more of a poor prediction's error
        # than the higher order takes away: with the steps too long for that, it is left.
        h = (schedule.host(i).log_snr - schedule.host(i - 1).log_snr) / 2
        growth = h if self.predict == "eps" else -h
        return growth <= GROWTH and not (self.plain_start or self.stochastic)

    def _again(self, schedule: Schedule, i: int, over: int, past: int) -> Line:
        if over == 1 and self.corrects:
            return self.correction(schedule, i, past)
        last = i + over
        nodes = [schedule.host(last - j) for j in range(past + 1)]
        return exponential(schedule, schedule.host(i), schedule.host(last), nodes, self.predict)

    def _usable(self, schedule: Schedule, i: int, there: int) -> int:
        left = len(schedule) - 1 - i if self.lower_order_final else self.order
        return min(self.order, there, left)


def predict(denoiser: DenoiserLike, x: Tensor, at: Scales, what: str) -> Tensor:
    """E[x0 | x] or E[eps | x], shape (B, *D)."""
    if what == "x0":
        return denoiser(x, at.alpha, at.sigma)
    return predict_noise(denoiser, x, at.alpha, at.sigma)


def combine(line: Line, x: Tensor, predictions: Sequence[Tensor], jolt: Tensor | None = None) -> Tensor:
    """Keep x + sum_j weights_j P_j + jolt."""
    out = line.keep * x
    for weight, prediction in zip(line.weights, predictions, strict=False):
        out = torch.add(out, prediction, alpha=weight)
    return out if jolt is None else out + jolt


def check_order(solver: str, order: int, most: int, predict: str) -> None:
    """Raises ValueError unless 1 <= order <= most, and predict is one of PREDICTIONS."""
    if order not in range(1, most + 1) or predict not in PREDICTIONS:
        raise ValueError(
            f"expected {solver} of order 1 to {most} and predict 'x0' or 'eps', got {order!r} and {predict!r}"
        )
