"""Embedded Runge-Kutta pairs: each sample has its own steps, and all samples are one batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.sde_lib import expand
from scorefield.solvers.ode.flow import State

# (the place of each row (R,), their state, their numbers (R,)) -> d state / ds
RowSlope = Callable[[Tensor, State, Tensor], State]

SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0  # of the next step's size
FIRST = 0.01  # the first step, as a share of the interval
MAX_EVALUATIONS = 100_000  # for a sample; images take 50 to 500, and 5,000 at tolerances of 1e-10


@dataclass(frozen=True)
class Pair:
    """Two methods on the same stages. The last stage is at the higher method's result and starts the next step.

    Args:
        order: of the higher method.
        nodes, matrix: of the stages, the last row of the matrix being the higher method's weights.
        error: its weights minus those of the lower method.
    """

    order: int
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]


PAIRS = {
    # Dormand and Prince 1980
    "dopri5": Pair(
        5,
        (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
    # Bogacki and Shampine 1989
    "bosh3": Pair(
        3,
        (0, 1 / 2, 3 / 4, 1),
        ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    ),
}


class UnsolvedError(ValueError):
    """An adaptive solver that does not converge: the sample, its place along the interval, and its error."""

    def __init__(self, message: str, sample: int, place: float, error: float) -> None:
        super().__init__(message)
        self.sample, self.place, self.error = sample, place, error


def spent(method: str, most: int, share: float) -> str:
    """The line of an adaptive solver that has not arrived after `most` evaluations."""
    return (
        f"expected {method} to arrive within {most:,} evaluations, got {share:.1%} of the way: take larger tolerances, "
        "samples in float64, a denoiser without dropout, or a larger max_evaluations"
    )


def adaptive_rk(
    pair: Pair,
    slope: RowSlope,
    state: State,
    length: float,
    rtol: float,
    atol: float,
    on_accept: Callable[[int, State], None] | None = None,
) -> State:
    """The state integrated from 0 to `length`. Each sample has its own steps, errors and rejections.

    A step's error is the largest, over the state's tensors, of the root mean square of error / (atol + rtol |y|).

    Args:
        pair: of methods.
        slope: d state / ds of some rows, each at its own s.
        state: tensors that share the batch dimension.
        length: of the interval.
        rtol: relative tolerance.
        atol: absolute tolerance.
        on_accept: called after each step with the number of samples that have arrived, and the state.

    Raises:
        UnsolvedError: when no step is small enough.
    """
    done = torch.zeros(len(state[0]), dtype=torch.float64)
    size = torch.full_like(done, FIRST * length)
    every = torch.arange(len(done))
    first = slope(done, state, every) if len(done) else state
    while bool((done < length).any()):
        rows = every[done < length]
        s, h = done[rows], size[rows].minimum(length - done[rows])
        start, slopes = tuple(y[rows] for y in state), [tuple(k[rows] for k in first)]
        for node, row in zip(pair.nodes[1:], pair.matrix[1:], strict=True):
            new = _along(start, h, row, slopes)
            slopes.append(slope((s + node * h).clamp(max=length), new, rows))
        error = _error(_along(None, h, pair.error, slopes), start, new, rtol, atol)
        stuck = (~error.isfinite() | ((h < 1e-12 * length) & (error > 1))).nonzero().flatten().tolist()
        if stuck:
            worst = stuck[0]
            raise UnsolvedError(
                f"expected a step that meets the tolerance, got an error of {float(error[worst]):g} times it at the "
                "smallest step: look for NaN in the input or the weights, or take larger tolerances",
                int(rows[worst]), float(s[worst]), float(error[worst]),
            )  # fmt: skip
        accepted = error <= 1
        size[rows] = h * step_factor(error, SAFETY, 1 / pair.order).clamp(MIN_FACTOR, MAX_FACTOR)
        there = rows[accepted]
        done[there] = torch.where(h >= length - s, length, s + h)[accepted]
        state = with_rows(state, there, new, accepted)
        first = with_rows(first, there, slopes[-1], accepted)
        if on_accept is not None and len(there):
            on_accept(int((done >= length).sum()), state)
    return state


def step_factor(error: Tensor, safety: float, exponent: float) -> Tensor:
    """Safety error^-exponent, (R,): computed row by row, so that none depends on its neighbours."""
    return torch.tensor([safety * max(e, 1e-10) ** -exponent for e in error.tolist()], dtype=torch.float64)


def _along(state: State | None, h: Tensor, weights: tuple[float, ...], slopes: list[State]) -> State:
    """State + h sum_j weights_j slopes_j, or the sum only, without a state."""
    sums = []
    for column in zip(*slopes[: len(weights)], strict=True):
        total = torch.zeros_like(column[0])
        for weight, k in zip(weights, column, strict=True):
            total = total + weight * k if weight else total
        sums.append(expand(h, total) * total)
    return tuple(sums) if state is None else tuple(y + d for y, d in zip(state, sums, strict=True))


def _error(errors: State, old: State, new: State, rtol: float, atol: float) -> Tensor:
    shares = []
    for e, y, z in zip(errors, old, new, strict=True):
        scaled = e / (atol + rtol * torch.maximum(y.abs(), z.abs()))
        shares.append(scaled.reshape(len(scaled), -1).square().mean(1).sqrt().detach().cpu().double())
    return torch.stack(shares).amax(0)


def with_rows(state: State, rows: Tensor, values: State, accepted: Tensor) -> State:
    """The state with the accepted values in these rows."""
    return tuple(
        y.index_copy(0, rows.to(y.device), v[accepted.to(v.device)]) for y, v in zip(state, values, strict=True)
    )
