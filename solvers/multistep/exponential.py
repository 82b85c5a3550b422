"""Exponential integrators: the path's linear part exactly, and the exact integral of a prediction's polynomial.

In half the log-SNR, l = lambda / 2, the reverse process at noise level tau (0: the probability flow, 1: the
reverse-time SDE) is linear but for what the network predicts:

    x0:   x_s = sigma_s / sigma_t e^(-tau^2 h) x_t + alpha_s (1 + tau^2) int e^((1 + tau^2)(l - l_s)) D(l) dl + c z,
          c^2 = sigma_s^2 (1 - e^(-2 tau^2 h))
    eps:  x_s = alpha_s / alpha_t x_t - sigma_s (1 + tau^2) int e^(l_s - l) eps(l) dl + c z,
          c^2 = sigma_s^2 tau^2 (e^(2 h) - 1),                                          h = l_s - l_t

(Lu et al. 2022, DPM-Solver, Eq. 3.4, and DPM-Solver++, Section 4; Xue et al. 2023, SA-Solver, Section 4.) A prediction
is known at some times. It is replaced by the polynomial through them, in the log-SNR or another integration variable.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scorefield.solvers.scales import ScalarScales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.variables import IntegrationVariable, LogSNR


class Coefficients(NamedTuple):
    """The coefficients of a step:  x' = of_x x + sum_j weights_j P_j + noise z,  P_0 the newest prediction."""

    of_x: float
    weights: tuple[float, ...]
    noise: float = 0.0


Array = NDArray[np.float64]
# Exact for polynomials of degree 63, and so to rounding for the exponentials over a path from end to end (for tau up to
# 2, and for smooth variables). The phi functions of the literature are the same integrals in closed form, which lose
# all their digits where steps are short.
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(32)


def exponential(
    schedule: Schedule,
    t: ScalarScales,
    s: ScalarScales,
    nodes: Sequence[ScalarScales],
    predict: str,
    *,
    tau: float = 0.0,
    variable: IntegrationVariable = LogSNR(),  # noqa: B008 - frozen
) -> Coefficients:
    """The step from t to s with predictions known at the nodes."""
    start, end = t.log_snr / 2, s.log_snr / 2
    h, more = end - start, 1 + tau**2
    l = start + h * (POINTS + 1) / 2  # noqa: E741 - half the log-SNR
    if predict == "x0":
        of_x = s.sigma / t.sigma * math.exp(-(tau**2) * h)
        kernel = s.alpha * more * np.exp(more * (l - end))
        noise = s.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
    else:
        of_x = s.alpha / t.alpha
        kernel = -s.sigma * more * np.exp(end - l)
        noise = s.sigma * tau * math.sqrt(math.expm1(2 * h)) if tau else 0.0
    if isinstance(variable, LogSNR):
        at, knots = 2 * l, [node.log_snr for node in nodes]
    else:
        at = variable.value(schedule.sde, schedule.sde.time(torch.from_numpy(2 * l))).detach().numpy()
        knots = variable.value(schedule.sde, torch.tensor([node.t for node in nodes], dtype=torch.float64)).tolist()
    measure = kernel * WEIGHTS * h / 2
    return Coefficients(of_x, tuple(float(measure @ basis) for basis in lagrange(knots, at)), noise)


def polynomial(knots: Sequence[float], start: float, end: float) -> list[float]:
    """The integrals from start to end of the Lagrange polynomials on the knots: weights of a plain Adams step."""
    measure = WEIGHTS * (end - start) / 2
    return [float(measure @ basis) for basis in lagrange(knots, start + (end - start) * (POINTS + 1) / 2)]


def lagrange(knots: Sequence[float], at: Array) -> list[Array]:
    """The polynomials that are 1 at one knot and 0 at the others."""
    from_knots, out = [at - knot for knot in knots], []
    for j, own in enumerate(knots):
        others = [k for k in range(len(knots)) if k != j]
        size = math.prod(own - knots[k] for k in others)
        out.append(functools.reduce(np.multiply, [from_knots[k] for k in others], np.full_like(at, 1 / size)))
    return out
