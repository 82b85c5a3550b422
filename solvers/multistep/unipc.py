"""UniPC: a unified predictor and corrector."""

import math
from dataclasses import dataclass

from scorefield.solvers.multistep.exponential import Coefficients, exponential
from scorefield.solvers.multistep.linear_multistep import LinearMultistep, check_order
from scorefield.solvers.schedule import Schedule


@dataclass(frozen=True)
class UniPC(LinearMultistep):
    """Zhao et al. 2023, "UniPC": order 1 to 3, corrected to one more, one evaluation a step.

    UniP-p integrates the polynomial through the last p predictions, and UniC-p that through the next one as well: the
    paper's conditions are those of the polynomial for any B(h). B(h) = h ("bh1") or e^h - 1 ("bh2"), with -h for h
    where x0 is predicted. It matters only where the paper takes one half for a coefficient, in UniP-2 and UniC-1:

        UniP-2:  x_s = exact step with P_0  -  k B(h) / 2 (P_0 - P_1) / r,     UniC-1:  ... -  k B(h) / 2 (P(s) - P_0)

    with k = alpha_s or sigma_s for "x0" or "eps", and r the last step over this one, in log-SNR.

    Args:
        order: 1 to 3.
        corrector: whether to correct. Without, it is UniP, whose order 3 still corrects its first step.
        predict: "x0" or "eps".
        variant: B(h), "bh1" or "bh2".
        lower_order_final: take the last steps with lower orders, as the released code does.
    """

    order: int = 3
    corrector: bool = True
    predict: str = "x0"
    variant: str = "bh2"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("UniPC", self.order, 3, self.predict)
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"expected variant 'bh1' or 'bh2', got {self.variant!r}")

    @property
    def corrects(self) -> bool:
        return self.corrector

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        if count == 2:
            before, t, s = (schedule.scalars(k).log_snr for k in (i - 1, i, i + 1))
            return self._with_half(schedule, i, (s - t) / (t - before), newest_first=True)
        return self._through(schedule, i, [i - j for j in range(count)])

    def correction(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        if count == 1:
            return self._with_half(schedule, i, 1.0, newest_first=False)
        return self._through(schedule, i, [i + 1 - j for j in range(count + 1)])

    def _through(self, schedule: Schedule, i: int, nodes: list[int]) -> Coefficients:
        knots = [schedule.scalars(k) for k in nodes]
        return exponential(schedule, schedule.scalars(i), schedule.scalars(i + 1), knots, self.predict)

    def _with_half(self, schedule: Schedule, i: int, slope: float, newest_first: bool) -> Coefficients:
        """The exact step with P_0, and half of B(h) times a slope of P_0 - P_1, or of P(s) - P_0."""
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        step = self._through(schedule, i, [i])
        h = (s.log_snr - t.log_snr) / 2
        signed, scale = (-h, -s.alpha) if self.predict == "x0" else (h, -s.sigma)
        half = scale * (signed if self.variant == "bh1" else math.expm1(signed)) * slope / 2
        (own,) = step.weights
        return step._replace(weights=(own + half, -half) if newest_first else (half, own - half))
