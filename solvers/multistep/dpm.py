"""DPM-Solver: the flow's linear part exactly, the prediction by extrapolation in log-SNR."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.exponential import Line, exponential
from scorefield.solvers.multistep.linear_multistep import LinearMultistep, check_order, combine, predict
from scorefield.solvers.schedule import ScalarScales, Schedule
from scorefield.solvers.variables import LogSNR


@dataclass(frozen=True)
class DPMSolver(LinearMultistep):
    """Exponential integrators of order 1 to 3 in half the log-SNR, l = lambda / 2, h = l_s - l_t.

        predict "x0":   x_s = sigma_s / sigma_t x - alpha_s (e^-h - 1) P      (DPM-Solver++, Eq. 9)
        predict "eps":  x_s = alpha_s / alpha_t x - sigma_s (e^h - 1) P       (DPM-Solver, Eq. 3.7)

    where P is the prediction at t (order 1, which is DDIM), at the middle of the step (order 2, singlestep), or
    extrapolated from the step before (order 2, multistep). Order 3 integrates a polynomial: the parabola through the
    last three predictions (multistep), or lines from t to a third and to two thirds of the step (singlestep). A
    multistep method takes one evaluation a step, a singlestep one as many as its order.

    Lu et al. 2022, "DPM-Solver", Alg. 1 and 2; "DPM-Solver++", Alg. 1 and 2.

    Args:
        order: 1, 2 or 3.
        multistep: use the last steps' evaluations rather than ones within the step.
        predict: what is held still over a step, "x0" or "eps".
        lower_order_final: let the last steps fall to orders 2 and 1, as is done for few steps (multistep).
        released: with multistep order 3 do as the authors' code and diffusers do: halve the second difference, which
            makes its order 2, and start by lower orders alone.
    """

    order: int = 2
    multistep: bool = True
    predict: str = "x0"
    lower_order_final: bool = False
    released: bool = False

    def __post_init__(self) -> None:
        check_order("DPMSolver", self.order, 3, self.predict)
        if self.released and not (self.multistep and self.order == 3):
            raise ValueError("expected released=True with multistep order 3 alone: the others are as released")
        if self.lower_order_final and not self.multistep:
            raise ValueError("expected lower_order_final=True with multistep=True: singlestep orders do not fall")

    @property
    def plain_start(self) -> bool:  # type: ignore[override]
        return self.released

    @property
    def remembers(self) -> bool:
        return self.multistep and self.order > 1

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        if self.multistep or self.order == 1:
            return super().step(denoiser, x, schedule, i, noise, memory)
        predictions = [predict(denoiser, x, schedule[i], self.predict)]
        fractions = (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3)
        lines = schedule.once((self, i), lambda: self._stages(schedule, i, fractions))
        for fraction, line in zip(fractions, lines, strict=False):
            # Each stage goes by the first prediction and the newest.
            y = combine(line, x, (predictions[-1], predictions[0])[: len(line.weights)])
            predictions.append(predict(denoiser, y, schedule.within(i, fraction, LogSNR()), self.predict))
        return combine(lines[-1], x, (predictions[-1], predictions[0])), None

    def line(self, schedule: Schedule, i: int, past: int) -> Line:
        t, s = schedule.host(i), schedule.host(i + 1)
        nodes = [schedule.host(i - j) for j in range(past)]
        if past == 2:
            return _extrapolated(exponential(schedule, t, s, nodes[:1], self.predict), t, s, nodes[1])
        line = exponential(schedule, t, s, nodes, self.predict)
        if past < 3 or not self.released:
            return line
        halved = _curvature(t, s, nodes, self.predict)
        return line._replace(weights=tuple(w - c for w, c in zip(line.weights, halved, strict=True)))

    def _stages(self, schedule: Schedule, i: int, fractions: tuple[float, ...]) -> list[Line]:
        t, s = schedule.host(i), schedule.host(i + 1)
        stages = [schedule.host_within(i, fraction, LogSNR()) for fraction in fractions]
        first = exponential(schedule, t, stages[0], [t], self.predict)
        if self.order == 2:  # the prediction in the middle stands for the whole step
            whole = exponential(schedule, t, s, [t], self.predict)
            return [first, whole]
        second = exponential(schedule, t, stages[1], [stages[0], t], self.predict)
        return [first, second, exponential(schedule, t, s, [stages[1], t], self.predict)]


@dataclass(frozen=True)
class StochasticDPMSolver(LinearMultistep):
    """SDE-DPM-Solver++, the reverse-time SDE as DPMSolver takes the flow: one evaluation a step.

        x_s = sigma_s / sigma_t e^(-eta h) x + alpha_s (1 - e^(-(1 + eta) h)) P + sigma_s sqrt(1 - e^(-2 eta h)) z

    Lu et al. 2022, DPM-Solver++, Section 5, for eta = 1. P is the prediction at t (order 1,
    for eta = 1 `Ancestral()`), or extrapolated from the step before (order 2); order 3 integrates the parabola
    through the last three.

    Args:
        order: 1, 2 or 3, for the drift; of the noise, as with any of these, the distribution is of order 1.
        eta: noise level, tau^2 of `SASolver`; 1 is the reverse-time SDE.

    Raises:
        ValueError: for another order, or eta that is not positive (use `DPMSolver`).
    """

    order: int = 2
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_order("StochasticDPMSolver", self.order, 3, self.predict)
        if not self.eta > 0 or math.isinf(self.eta):
            raise ValueError(f"expected a positive eta, got {self.eta}: for none use DPMSolver({self.order})")

    @property
    def stochastic(self) -> bool:
        return True

    def line(self, schedule: Schedule, i: int, past: int) -> Line:
        t, s = schedule.host(i), schedule.host(i + 1)
        nodes, tau = [schedule.host(i - j) for j in range(past)], math.sqrt(self.eta)
        if past != 2:
            return exponential(schedule, t, s, nodes, "x0", tau=tau)
        return _extrapolated(exponential(schedule, t, s, nodes[:1], "x0", tau=tau), t, s, nodes[1])


def _extrapolated(line: Line, t: ScalarScales, s: ScalarScales, before: ScalarScales) -> Line:
    """The step with the prediction in its middle on the line through the last two, from that with the last alone."""
    ratio = (s.log_snr - t.log_snr) / (t.log_snr - before.log_snr) / 2
    return line._replace(weights=((1 + ratio) * line.weights[0], -ratio * line.weights[0]))


def _curvature(t: ScalarScales, s: ScalarScales, nodes: list[ScalarScales], predict: str) -> tuple[float, ...]:
    """What half the second difference of three predictions adds to a step, as weights of theirs."""
    h = (s.log_snr - t.log_snr) / 2
    r0, r1 = ((a.log_snr - b.log_snr) / 2 / h for a, b in itertools.pairwise(nodes))
    if predict == "x0":
        factor = -s.alpha * ((math.expm1(-h) + h) / h**2 - 0.5)
    else:
        factor = -s.sigma * ((math.expm1(h) - h) / h**2 - 0.5)
    factor /= r0 + r1
    return factor / r0, -factor * (1 / r0 + 1 / r1), factor / r1
