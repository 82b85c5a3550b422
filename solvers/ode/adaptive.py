"""The probability flow by adaptive solvers: our own, torchdiffeq's and scipy's."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from scorefield.solvers import variables
from scorefield.solvers.ode.adaptive_rk import MAX_EVALUATIONS, PAIRS, UnsolvedError, adaptive_rk, spent
from scorefield.solvers.ode.flow import Field, FlowSolver, Rows, State, enter, in_variable, leave
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import OnStep, Progress
from scorefield.solvers.variables import IntegrationVariable

TORCHDIFFEQ = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
SCIPY = ("RK45", "RK23", "DOP853", "LSODA", "BDF", "Radau")

# Shares of the tolerances where a graph is kept. Its steps are chosen for the values, and a gradient's error is several
# times a value's: up to 3e-4 at 1e-5, in few steps of a high order.
OF_GRADIENTS, OF_HIGH_ORDER_GRADIENTS = 0.1, 0.01
# Torchdiffeq's fehlberg2 takes h/512 of a change of slope as its error, where Euler's is h/2 of it.
OF_FEHLBERG2 = 1 / 256

Slope = Callable[[float, State], State]


@dataclass(frozen=True)
class Adaptive(FlowSolver):
    """Error-controlled steps from the grid's first time to its last. The times between are not used.

    Args:
        method: of torchdiffeq ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"), or of scipy
            ("scipy:RK45", "scipy:DOP853", "scipy:LSODA", ...), which runs on the CPU in float64, without
            gradients. fehlberg2 estimates 1/256 of its error: its tolerances are scaled by that.
        rtol, atol: relative and absolute tolerance of a step. Where gradients are kept, a tenth, and with "dopri5" and
            "dopri8" a hundredth of them: gradients are then good to 1e-4 at the default tolerances.
        per_sample: each sample has its own steps, so that its result does not depend on its batch. With "dopri5" and
            "bosh3" all samples are still one batch, by our own engine (`solvers.ode.adaptive_rk`). The other methods
            take samples one by one. With False the samples of a batch share their steps.
        variable: integration variable of steps and errors, see `RungeKutta`. In the log-SNR the flow is smooth on every
            path from end to end.
        max_evaluations: of the field in a solution, for a sample where each has its own steps.

    Raises:
        ValueError: for an unknown method, gradients with scipy's, or more evaluations.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    per_sample: bool = True
    variable: str | IntegrationVariable = "log_snr"
    max_evaluations: int = field(default=MAX_EVALUATIONS, repr=False)

    def __post_init__(self) -> None:
        variables.find(self.variable)
        known = (*TORCHDIFFEQ, *(f"scipy:{name}" for name in SCIPY))
        if self.method not in known:
            raise ValueError(f"expected an adaptive method ({', '.join(known)}), got {self.method!r}")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"expected positive tolerances, got rtol {self.rtol} and atol {self.atol}")

    @property
    def fixed_grid(self) -> bool:
        return False

    @property
    def splits_batch(self) -> bool:
        return self.per_sample

    def integrate(self, field: Field, state: State, schedule: Schedule, on_step: OnStep = None) -> State:
        """See `FlowSolver.integrate`. `on_step` gets, as steps, the number of samples that have arrived."""
        if len(state[0]) == 0:
            return state
        if ":" in self.method and torch.is_grad_enabled():
            raise ValueError(
                f"expected a method that gradients pass through, got {self.method}: use one of {', '.join(TORCHDIFFEQ)}"
            )
        if self.per_sample and self.method in PAIRS:
            return self._in_one_batch(field, state, schedule, on_step)
        chunks = [slice(i, i + 1) for i in range(len(state[0]))] if self.per_sample else [slice(None)]
        arrived = []
        for i, rows in enumerate(chunks):
            try:
                arrived.append(self._solve(field, tuple(y[rows] for y in state), rows, schedule))
            except ValueError as error:
                raise self._named(error, i if self.per_sample else None, schedule) from error
            if on_step is not None:
                on_step(Progress(i + 1, len(chunks), math.nan, arrived[-1][0]))
        return tuple(torch.cat(column) for column in zip(*arrived, strict=True))

    def by_adjoint(self, field: Field, state: State, schedule: Schedule, weights: tuple[Tensor, ...]) -> State:
        """`integrate`, differentiable by state and weights in constant memory: gradients follow the flow backwards.

        Chen et al. 2018, "Neural Ordinary Differential Equations", Algorithm 1.
        """
        if ":" in self.method or self.per_sample:
            raise ValueError(
                f"expected Adaptive(per_sample=False), a method of torchdiffeq, for the adjoint, got {self}"
            )
        variable = variables.find(self.variable)
        along, length = self._slope(field, schedule)
        rtol, atol = self._tolerances()

        def slope(distance: Tensor, y: State) -> State:
            return along(distance.detach(), y, slice(None))

        ends = torch.tensor([0.0, length], dtype=torch.float64, device=state[0].device)
        solution = odeint_adjoint(
            slope,
            enter(state, variable, schedule[0]),
            ends,
            rtol=rtol,
            atol=atol,
            method=self.method,
            options={"step_t": ends[1:]},
            adjoint_options={"step_t": ends[:1]},
            adjoint_params=weights,
        )
        return leave(tuple(column[-1] for column in solution), variable, schedule[-1])

    def _tolerances(self) -> tuple[float, float]:
        factor = OF_FEHLBERG2 if self.method == "fehlberg2" else 1.0
        if torch.is_grad_enabled():
            factor *= OF_HIGH_ORDER_GRADIENTS if self.method in ("dopri5", "dopri8") else OF_GRADIENTS
        return factor * self.rtol, factor * self.atol

    def _in_one_batch(self, field: Field, state: State, schedule: Schedule, on_step: OnStep) -> State:
        variable, count = variables.find(self.variable), len(state[0])
        slope, length = self._slope(field, schedule)

        def on_accept(arrived: int, y: State) -> None:
            if on_step is not None:
                on_step(Progress(arrived, count, math.nan, leave(y, variable, schedule[-1])[0]))

        start = enter(state, variable, schedule[0])
        try:
            y = adaptive_rk(PAIRS[self.method], slope, start, length, *self._tolerances(), on_accept)
        except UnsolvedError as error:
            raise self._named(error, error.sample, schedule, error.place) from None
        return leave(y, variable, schedule[-1])

    def _named(
        self, error: ValueError, sample: int | None, schedule: Schedule, place: float = math.nan
    ) -> UnsolvedError:
        """The error, with the sample and the time that it came from."""
        where = "" if sample is None else f"sample {sample}"
        if not math.isnan(place):
            variable = variables.find(self.variable)
            first, last = variable.value(schedule.sde, schedule.ts[[0, -1]])
            t = variable.time(schedule.sde, first + (place if last > first else -place))
            where += f" at t = {float(t):g}"
        message = f"{self.method} on {where}: {error}" if where else str(error)
        return UnsolvedError(message, -1 if sample is None else sample, place, getattr(error, "error", math.nan))

    def _slope(self, field: Field, schedule: Schedule) -> tuple[Callable[[Tensor, State, Rows], State], float]:
        """The field  d state / ds  of some rows, and the length of the interval. s rises from 0 with the variable."""
        variable, ends = variables.find(self.variable), schedule.ts[[0, -1]]
        first, last = variable.value(schedule.sde, ends).tolist()
        direction = 1.0 if last > first else -1.0
        change, counted = in_variable(field, variable), itertools.count()

        def slope(distance: Tensor, y: State, rows: Rows) -> State:
            if next(counted) >= self.max_evaluations:
                share = float(distance.min()) / abs(last - first)
                raise ValueError(spent(self.method, self.max_evaluations, share))
            at = variables.scales_at(schedule.sde, variable, first + direction * distance.double(), ends)
            return tuple(direction * k for k in change(at, y, rows))

        return slope, abs(last - first)

    def _solve(self, field: Field, state: State, rows: slice, schedule: Schedule) -> State:
        variable = variables.find(self.variable)
        along, length = self._slope(field, schedule)

        def slope(distance: float, y: State) -> State:
            out = along(torch.tensor(distance, dtype=torch.float64), y, rows)
            if not all(bool(k.isfinite().all()) for k in out):
                raise ValueError(
                    "expected a finite flow, got NaN or infinity: look for NaN in the input or the weights"
                )
            return out

        engine = (
            partial(_scipy, self.method.removeprefix("scipy:"))
            if ":" in self.method
            else partial(_torchdiffeq, self.method)
        )
        y = engine(slope, enter(state, variable, schedule[0]), length, *self._tolerances())
        return leave(y, variable, schedule[-1])


def _torchdiffeq(method: str, slope: Slope, state: State, length: float, rtol: float, atol: float) -> State:
    ends = torch.tensor([0.0, length], dtype=torch.float64, device=state[0].device)
    try:
        solution = odeint(
            lambda s, y: slope(float(s.detach()), y),
            state,
            ends,
            rtol=rtol,
            atol=atol,
            method=method,
            # otherwise the last step passes the end, where the path may not be defined
            options={"step_t": ends[1:], "norm": _largest_rms},
        )
    except AssertionError as error:
        raise ValueError(
            f"expected a step that meets the tolerance, {method} got none ({error}): take larger tolerances"
        ) from None
    return tuple(column[-1] for column in solution)


def _largest_rms(parts: State) -> Tensor:
    """Torchdiffeq's norm of an error, of detached values: the size of a step is no function of the state's gradient.

    Otherwise a step would move with the state while the times of its evaluations, and the interval's end, do not.
    """
    return torch.stack([part.detach().square().mean().sqrt() for part in parts]).amax()


def _scipy(method: str, slope: Slope, state: State, length: float, rtol: float, atol: float) -> State:
    sizes = [y.numel() for y in state]

    def pack(y: State) -> np.ndarray:
        return torch.cat([part.detach().flatten().cpu().double() for part in y]).numpy()

    def unpack(flat: np.ndarray) -> State:
        parts = torch.split(torch.as_tensor(flat), sizes)
        return tuple(part.reshape(like.shape).to(like) for part, like in zip(parts, state, strict=True))

    share = np.sqrt(np.repeat(sizes, sizes) / sum(sizes))
    solution = solve_ivp(
        lambda s, flat: pack(slope(float(s), unpack(flat))),
        (0.0, length),
        pack(state),
        method=method,
        rtol=rtol * share,
        atol=atol * share,
    )
    if not solution.success:
        raise ValueError(f"expected scipy:{method} to arrive, got {solution.message!r}: take larger tolerances")
    return unpack(solution.y[:, -1])
