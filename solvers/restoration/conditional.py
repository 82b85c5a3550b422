"""Draws of  N(z; mean, variance) N(y; A(z), noise_std^2):  what a measurement says of an estimate."""

from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.restoration.problem import Problem

ACCEPTANCE = 0.574  # of Metropolis-adjusted Langevin steps in many dimensions (Roberts and Rosenthal 1998)


def draw(problem: Problem, mean: Tensor, variance: Tensor, noise: Noise, langevin: int) -> Tensor:
    """A draw for each sample, (B, *D): exact for a linear measurement, or else by Langevin steps.

    Args:
        problem: with y and its noise.
        mean: (B, *D).
        variance: of z around it, ().
        noise: source of normals.
        langevin: number of Langevin steps for a nonlinear measurement.
    """
    if problem.measurement.linear:
        return _linear(problem, mean, variance, noise)
    return _langevin(problem, mean, variance, noise, langevin)


def check_noise(problem: Problem, who: str) -> None:
    """Raises ValueError for a nonlinear measurement without noise."""
    if problem.noise_std == 0 and not problem.measurement.linear:
        raise ValueError(
            f"expected a noise_std above 0 for {who} with a nonlinear measurement, got 0: give a small one, as 0.01"
        )


def _linear(problem: Problem, mean: Tensor, variance: Tensor, noise: Noise) -> Tensor:
    """By perturbation: a draw of the pair (z, A z + noise_std n), corrected by the gain of what it misses of y.

    z' = z + variance A^T (noise_std^2 I + variance A A^T)^-1 (y - A z - noise_std n).
    """
    measurement, std = problem.measurement, problem.noise_std
    z = mean + expand(variance.sqrt(), mean) * noise(mean)
    predicted = measurement(z)
    if std > 0:
        predicted = predicted + std * noise(predicted)
    missing = measurement.solve(problem.y - predicted, std**2, variance)
    return z + expand(variance, mean) * measurement.adjoint(missing)


def _langevin(problem: Problem, mean: Tensor, variance: Tensor, noise: Noise, steps: int) -> Tensor:
    """By Metropolis-adjusted Langevin steps from the mean; each sample finds its own step size on the way."""
    rows = (-1, *(1,) * (mean.ndim - 1))
    log_target = _log_target(problem, mean, variance)
    uniforms = torch.special.ndtr(noise(mean.new_empty(len(mean), steps)))
    step = (1 / (1 / variance + 1 / problem.noise_std**2)).to(mean).expand(len(mean)).reshape(rows)
    z, (value, slope) = mean, log_target(mean)
    for k in range(steps):
        to = z + step / 2 * slope + step.sqrt() * noise(z)
        value_to, slope_to = log_target(to)
        back, forth = _square(z - to - step / 2 * slope_to), _square(to - z - step / 2 * slope)
        ratio = value_to - value - (back - forth) / (2 * step.flatten())
        chance = ratio.nan_to_num(-torch.inf, posinf=0.0).clamp(max=0).exp()
        accepted = uniforms[:, k] < chance
        row = accepted.reshape(rows)
        z, slope, value = (
            torch.where(row, to, z),
            torch.where(row, slope_to, slope),
            torch.where(accepted, value_to, value),
        )
        step = step * ((chance - ACCEPTANCE) / (k + 1) ** 0.5).exp().reshape(rows)
    return z


def _log_target(problem: Problem, mean: Tensor, variance: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The log-density in nats up to a constant, (B,), and its gradient, (B, *D)."""
    precision = (1 / variance).to(mean)

    def at(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            apart = _square((problem.y - problem.measurement(z)) / problem.noise_std)
            value = -(precision * _square(z - mean.detach()) + apart) / 2
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    return at


def _square(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)
