"""Move the times of a grid, so that a solver comes nearer to the flow."""

from collections.abc import Callable

import torch
from torch import Tensor

DIRECTIONS = 10  # in which the times move; a longer grid bends, and its times do not move one by one
STEP = 0.05  # of a finite difference, in mean steps of the grid
ROUNDS, TRIES = 3, 4

Residual = Callable[[Tensor], Tensor]


def moved(log_snr: Tensor, residual: Residual, ends: tuple[float, float]) -> Tensor:
    """Times of less distance, as rising log-SNRs (T,), float64: a few steps of Levenberg and Marquardt.

        minimise  |r(l)|^2,    l <- l - (J^T J + m diag(J^T J))^-1 J^T r

    with J of finite differences. Marquardt 1963, "An algorithm for least-squares estimation of nonlinear parameters".
    A grid of many times moves along `DIRECTIONS` hats, which are piecewise linear in its index.

    Args:
        log_snr: the first grid, (T,).
        residual: of a grid, (M,): solutions minus the flow's.
        ends: the least and the largest log-SNR.
    """
    hats = _hats(len(log_snr), min(len(log_snr), DIRECTIONS))
    width = STEP * float(log_snr[-1] - log_snr[0]) / (len(log_snr) - 1)
    best, at, damping = log_snr.clamp(*ends), residual(log_snr.clamp(*ends)), 1e-2
    for _ in range(ROUNDS):
        # Towards the inside, so that an end that does not move has a slope too.
        signs = torch.where(hats.argmax(1) < len(log_snr) / 2, 1.0, -1.0).to(hats)
        columns = [(residual(best + s * width * hat) - at) / (s * width) for s, hat in zip(signs, hats, strict=True)]
        slopes = torch.stack(columns, 1).double()
        if not bool(slopes.isfinite().all()):
            return best
        square, gradient = slopes.T @ slopes, slopes.T @ at.double()
        for _ in range(TRIES):
            new = _in_order(best + _change(square, gradient, damping, best, ends) @ hats, best, ends)
            there = residual(new)
            if bool(there.isfinite().all()) and there.square().sum() < at.square().sum():
                best, at, damping = new, there, damping / 10
                break
            damping = 10 * damping
        else:
            return best
    return best


def _change(square: Tensor, gradient: Tensor, damping: float, at: Tensor, ends: tuple[float, float]) -> Tensor:
    """How far to go along each hat. An end of the path that would be left stays, and the others make up for it."""
    scaled = square + torch.diag(damping * square.diagonal() + 1e-12 * square.diagonal().max() + 1e-30)
    change = -torch.linalg.solve(scaled, gradient)
    free = torch.ones(len(change), dtype=torch.bool)
    free[0] = bool(at[0] + change[0] > ends[0])
    free[-1] = bool(at[-1] + change[-1] < ends[1])
    change = torch.zeros_like(change)
    change[free] = -torch.linalg.solve(scaled[free][:, free], gradient[free])
    return change


def _hats(count: int, directions: int) -> Tensor:
    """Piecewise linear functions of the index, one at each of equally spaced knots, (directions, count)."""
    index = torch.linspace(0, directions - 1, count, dtype=torch.float64)
    return (1 - (index - torch.arange(directions, dtype=torch.float64)[:, None]).abs()).clamp(min=0)


def _in_order(new: Tensor, old: Tensor, ends: tuple[float, float]) -> Tensor:
    """The new times within the path; nearer to the old ones until every step keeps a tenth of its length."""
    change = new.clamp(*ends) - old
    while bool(((old + change).diff() < 0.1 * old.diff()).any()):
        change = change / 2
    return old + change
