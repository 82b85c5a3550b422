"""Adams methods under the exponential integral: polynomials through the last predictions, and through the next."""

import math
from dataclasses import dataclass

from scorefield.solvers import variables
from scorefield.solvers.multistep.exponential import Coefficients, exponential
from scorefield.solvers.multistep.linear_multistep import LinearMultistep, check_order
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.variables import IntegrationVariable


class _Adams(LinearMultistep):
    """A step integrates the polynomial through the last predictions; corrected, through the next one as well."""

    variable: str | IntegrationVariable = "log_snr"
    tau: float = 0.0

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        return self._through(schedule, i, [i - j for j in range(count)])

    def correction(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        return self._through(schedule, i, [i + 1 - j for j in range(min(count + 1, max(self.order, 2)))])

    def _through(self, schedule: Schedule, i: int, nodes: list[int]) -> Coefficients:
        return exponential(
            schedule,
            schedule.scalars(i),
            schedule.scalars(i + 1),
            [schedule.scalars(k) for k in nodes],
            self.predict,
            tau=self.tau,
            variable=variables.find(self.variable),
        )


@dataclass(frozen=True)
class Adams(_Adams):
    """Adams-Bashforth(-Moulton) of order 1 to 4 with the linear part integrated exactly: one evaluation a step.

        x_s = c x_t + sum_j P_j int kernel(l) L_j(l) dl

    with L_j the Lagrange polynomials on the last `order` points, for any spacing (Bashforth). The corrector takes the
    same step again on s and the last order - 1 points (Moulton, PEC), with the evaluation at s that the next step needs
    anyway. The last state is a predicted one.

    Hochbruck and Ostermann 2010, "Exponential integrators", Section 2.5 for the method; without the corrector and with
    predict="x0" order 2 is DPM-Solver++(2M) up to higher terms.

    Args:
        order: 1 to 4; order 4 starts with one evaluation more.
        corrector: whether to correct.
        predict: what the polynomial approximates, "x0" or "eps".
        variable: integration variable of the polynomial, see `RungeKutta`.
        lower_order_final: take the last steps with lower orders.
    """

    order: int = 3
    corrector: bool = True
    predict: str = "x0"
    variable: str | IntegrationVariable = "log_snr"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("Adams", self.order, 4, self.predict)
        variables.find(self.variable)

    @property
    def corrects(self) -> bool:
        return self.corrector


@dataclass(frozen=True)
class DEIS(_Adams):
    """DEIS of order 1 to 3: the noise as a polynomial of its last values, one evaluation a step.

    Zhang and Chen 2023, "Fast sampling of diffusion models with exponential integrator", Section 3. Its polynomial is
    in log rho = log(sigma / alpha), as in diffusers. The paper's tAB-DEIS is variable="time", and rhoAB is
    variable="sigma".

    Args:
        order: 1 to 3; 1 is DDIM.
        variable: integration variable of the polynomial.
        lower_order_final: take the last steps with lower orders.
        plain_start: start with lower orders and no correction, as the authors' code and diffusers do.
    """

    order: int = 3
    variable: str | IntegrationVariable = "log_snr"
    lower_order_final: bool = False
    plain_start: bool = False

    predict = "eps"

    def __post_init__(self) -> None:
        check_order("DEIS", self.order, 3, self.predict)
        variables.find(self.variable)


@dataclass(frozen=True)
class SASolver(_Adams):
    """The reverse process at any noise level, by Adams methods under its exponential integral: one evaluation a step.

    SA-Solver (Xue et al. 2023, Section 4): tau = 0 is the probability flow, tau = 1 the reverse-time SDE. Every tau has
    the same marginals. The corrector uses the same noise as the predictor.

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


StochasticAdams = SASolver  # its name until 0.1.0
