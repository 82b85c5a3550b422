"""Adams methods under the exponential integral: polynomials through the last predictions, and through the next."""

import math
from dataclasses import dataclass

from scorefield.solvers import variables
from scorefield.solvers.multistep.exponential import Line, exponential
from scorefield.solvers.multistep.linear_multistep import LinearMultistep, check_order
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.variables import IntegrationVariable


class _Adams(LinearMultistep):
    """A step integrates the polynomial through the last predictions; corrected, through the next one as well."""

    clock: str | IntegrationVariable = "log_snr"
    tau: float = 0.0

    def line(self, schedule: Schedule, i: int, past: int) -> Line:
        return self._through(schedule, i, [i - j for j in range(past)])

    def correction(self, schedule: Schedule, i: int, past: int) -> Line:
        return self._through(schedule, i, [i + 1 - j for j in range(min(past + 1, max(self.order, 2)))])

    def _through(self, schedule: Schedule, i: int, nodes: list[int]) -> Line:
        return exponential(
            schedule,
            schedule.host(i),
            schedule.host(i + 1),
            [schedule.host(k) for k in nodes],
            self.predict,
            tau=self.tau,
            clock=variables.find(self.clock),
        )


@dataclass(frozen=True)
class Adams(_Adams):
    """Adams-Bashforth(-Moulton) of order 1 to 4 with the linear part integrated exactly: one evaluation a step.

        x_s = keep x_t + sum_j P_j int kernel(l) L_j(l) dl

    with L_j the Lagrange polynomials on the last `order` points, whatever their spacing (Bashforth), and then, with the
    evaluation at s that the next step needs anyway, on s and the last order - 1 (Moulton, PEC). The last state is a
    predicted one.

    Hochbruck and Ostermann 2010, "Exponential integrators", Section 2.5 for the method; without the corrector and with
    predict="x0" order 2 is DPM-Solver++(2M) but for higher terms.

    Args:
        order: 1 to 4; 4 spends one evaluation more to start.
        corrector: whether to correct.
        predict: what the polynomial stands for, "x0" or "eps".
        clock: of the polynomial: "log_snr", or another (`RungeKutta`).
        lower_order_final: let the last steps fall to lower orders.
    """

    order: int = 3
    corrector: bool = True
    predict: str = "x0"
    clock: str | IntegrationVariable = "log_snr"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("Adams", self.order, 4, self.predict)
        variables.find(self.clock)

    @property
    def corrects(self) -> bool:
        return self.corrector


@dataclass(frozen=True)
class DEIS(_Adams):
    """DEIS of order 1 to 3: the noise as a polynomial of its last values, one evaluation a step.

    Zhang and Chen 2023, "Fast sampling of diffusion models with exponential integrator", Section 3. Its polynomial is
    in log rho = log(sigma / alpha), as in diffusers; the paper's tAB-DEIS is clock="time", its rhoAB clock="sigma".

    Args:
        order: 1 to 3; 1 is DDIM.
        clock: of the polynomial.
        lower_order_final: let the last steps fall to lower orders.
        plain_start: start by lower orders alone, as the authors' code and diffusers do.
    """

    order: int = 3
    clock: str | IntegrationVariable = "log_snr"
    lower_order_final: bool = False
    plain_start: bool = False

    predict = "eps"

    def __post_init__(self) -> None:
        check_order("DEIS", self.order, 3, self.predict)
        variables.find(self.clock)


@dataclass(frozen=True)
class SASolver(_Adams):
    """The reverse process at any noise level, by Adams methods under its exponential integral: one evaluation a step.

    SA-Solver (Xue et al. 2023, Section 4): tau = 0 is the probability flow, tau = 1 the reverse-time SDE, and all
    between and beyond have the same marginals. The corrector meets the same noise as the predictor.

    Args:
        order: 1 to 4, of the drift.
        tau: noise level.
        corrector: whether to correct.
        predict: "x0" or "eps".

    Raises:
        ValueError: for another order, or tau that is not positive (use `Adams`).
    """

    order: int = 3
    tau: float = 1.0
    corrector: bool = True
    predict: str = "x0"

    def __post_init__(self) -> None:
        check_order("SASolver", self.order, 4, self.predict)
        if not self.tau > 0 or math.isinf(self.tau):
            raise ValueError(f"expected a positive tau, got {self.tau}: for none use Adams({self.order})")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def corrects(self) -> bool:
        return self.corrector
