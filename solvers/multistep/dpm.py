"""DPM-Solver: the flow's linear part exactly, the prediction by extrapolation in log-SNR."""

import itertools
import math
from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.exponential import Coefficients, exponential
from scorefield.solvers.multistep.linear_multistep import LinearMultistep, check_order, combine, predict
from scorefield.solvers.scales import ScalarScales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History
from scorefield.solvers.variables import LogSNR


@dataclass(frozen=True)
class DPMSolver(LinearMultistep):
    """Exponential integrators of order 1 to 3 in half the log-SNR, l = lambda / 2, h = l_s - l_t.

        predict "x0":   x_s = sigma_s / sigma_t x - alpha_s (e^-h - 1) P      (DPM-Solver++, Eq. 9)
        predict "eps":  x_s = alpha_s / alpha_t x - sigma_s (e^h - 1) P       (DPM-Solver, Eq. 3.7)

    where P is the prediction at t (order 1, which is DDIM), at the middle of the step (order 2, singlestep), or
    extrapolated from the step before (order 2, multistep). Order 3 integrates a polynomial: the parabola through the
    last three predictions (multistep), or lines from t to a third and to two thirds of the step (singlestep). A
    multistep method takes one evaluation a step, a singlestep method of order p takes p.

    Lu et al. 2022, "DPM-Solver", Alg. 1 and 2; "DPM-Solver++", Alg. 1 and 2.

    Args:
        order: 1, 2 or 3.
        multistep: use the last steps' evaluations rather than ones within the step.
        predict: what is constant over a step of order 1, "x0" or "eps".
        lower_order_final: take the last steps with orders 2 and 1, as is usual for few steps (multistep).
        released: multistep order 3 as in the authors' code and diffusers. They halve the second difference, which makes
            it order 2, and start with lower orders and no correction.
    """

    order: int = 2
    multistep: bool = True
    predict: str = "x0"
    lower_order_final: bool = False
    released: bool = False

    def __post_init__(self) -> None:
        check_order("DPMSolver", self.order, 3, self.predict)
        if self.released and not (self.multistep and self.order == 3):
            raise ValueError("expected released=True with multistep order 3 only: the other orders are as released")
        if self.lower_order_final and not self.multistep:
            raise ValueError("expected lower_order_final=True with multistep=True: singlestep orders do not fall")

    @property
    def plain_start(self) -> bool:  # type: ignore[override]
        return self.released

    @property
    def remembers(self) -> bool:
        return self.multistep and self.order > 1

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        if self.multistep or self.order == 1:
            return super().step(denoiser, x, schedule, i, noise, memory)
        predictions = [predict(denoiser, x, schedule[i], self.predict)]
        fractions = (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3)
        stages = schedule.cached((self, i), lambda: self._stages(schedule, i, fractions))
        for fraction, stage in zip(fractions, stages, strict=False):
            # A stage uses the newest prediction and the first.
            y = combine(stage, x, (predictions[-1], predictions[0])[: len(stage.weights)])
            predictions.append(predict(denoiser, y, schedule.between(i, fraction, LogSNR()), self.predict))
        return combine(stages[-1], x, (predictions[-1], predictions[0])), None

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        nodes = [schedule.scalars(i - j) for j in range(count)]
        if count == 2:
            return _extrapolated(exponential(schedule, t, s, nodes[:1], self.predict), t, s, nodes[1])
        step = exponential(schedule, t, s, nodes, self.predict)
        if count < 3 or not self.released:
            return step
        halved = _curvature(t, s, nodes, self.predict)
        return step._replace(weights=tuple(w - c for w, c in zip(step.weights, halved, strict=True)))

    def _stages(self, schedule: Schedule, i: int, fractions: tuple[float, ...]) -> list[Coefficients]:
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        stages = [schedule.scalars_between(i, fraction, LogSNR()) for fraction in fractions]
        first = exponential(schedule, t, stages[0], [t], self.predict)
        if self.order == 2:  # one prediction, in the middle of the step
            return [first, exponential(schedule, t, s, [t], self.predict)]
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
        order: 1, 2 or 3, of the drift. The distribution is of order 1 in the noise, as with all of these.
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

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        nodes, tau = [schedule.scalars(i - j) for j in range(count)], math.sqrt(self.eta)
        if count != 2:
            return exponential(schedule, t, s, nodes, "x0", tau=tau)
        return _extrapolated(exponential(schedule, t, s, nodes[:1], "x0", tau=tau), t, s, nodes[1])


def _extrapolated(step: Coefficients, t: ScalarScales, s: ScalarScales, before: ScalarScales) -> Coefficients:
    """The step whose prediction is the line through the last two at its middle, from the step with the last one."""
    ratio = (s.log_snr - t.log_snr) / (t.log_snr - before.log_snr) / 2
    return step._replace(weights=((1 + ratio) * step.weights[0], -ratio * step.weights[0]))


def _curvature(t: ScalarScales, s: ScalarScales, nodes: list[ScalarScales], predict: str) -> tuple[float, ...]:
    """The weights of three predictions that half their second difference adds to a step."""
    h = (s.log_snr - t.log_snr) / 2
    r0, r1 = ((a.log_snr - b.log_snr) / 2 / h for a, b in itertools.pairwise(nodes))
    if predict == "x0":
        factor = -s.alpha * ((math.expm1(-h) + h) / h**2 - 0.5)
    else:
        factor = -s.sigma * ((math.expm1(h) - h) / h**2 - 0.5)
    factor /= r0 + r1
    return factor / r0, -factor * (1 / r0 + 1 / r1), factor / r1
