"""Grids of times: each function returns a falling 1-D float64 tensor from a path's t_max to its t_min.

Flip one (`ts.flip(0)`) to encode. A grid of `steps` has `steps + 1` times. The exceptions are `geometric`, `leading`,
`trailing` and `linspace`, which count times, and `sigmas`, which has those of its levels.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.sde import check_one_level
from scorefield.solvers.variables import IntegrationVariable, SoftClippedLogSNR


def uniform(sde: SDE, steps: int) -> Tensor:
    """Equal steps in time."""
    return _spaced(sde, steps, lambda t: t, lambda t: t)


def quadratic(sde: SDE, steps: int) -> Tensor:
    """Equal steps in sqrt(t): shorter ones near the data (DDIM, Appendix D.2)."""
    return _spaced(sde, steps, torch.sqrt, torch.square)


def log_snr(sde: SDE, steps: int) -> Tensor:
    """Equal steps in log-SNR, which are geometric noise levels (Lu et al. 2022, DPM-Solver, Section 3.4)."""
    return _spaced(sde, steps, sde.log_snr, sde.time)


def soft_clipped(sde: SDE, steps: int, low: float = 0.01, high: float = 20.0, time_weight: float = 0.0) -> Tensor:
    """Equal steps in `SoftClippedLogSNR`: those of `log_snr` between the noise levels low and high, longer beyond."""
    return uniform_in(sde, steps, SoftClippedLogSNR(low, high, time_weight=time_weight))


def uniform_in(sde: SDE, steps: int, variable: IntegrationVariable) -> Tensor:
    """Equal steps in any integration variable of `solvers.variables`."""
    return _spaced(sde, steps, lambda t: variable.value(sde, t), lambda c: variable.time(sde, c))


def geometric(sde: SDE, steps: int) -> Tensor:
    """`steps` noise levels in geometric progression: the times of `log_snr`, counted as NCSN counts its levels."""
    _at_least_one(steps)
    return log_snr(sde, steps - 1) if steps > 1 else torch.tensor([sde.t_min], dtype=torch.float64)


def karras(sde: SDE, steps: int, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma / alpha)^(1 / rho)  (Karras et al. 2022, Eq. 5)."""
    if not rho > 0:
        raise ValueError(f"expected a positive rho, got {rho}")

    def warp(t: Tensor) -> Tensor:
        return (-sde.log_snr(t) / (2 * rho)).exp()

    return _spaced(sde, steps, warp, lambda warped: sde.time(-2 * rho * warped.log()))


def sigmas(sde: SDE, levels: Sequence[float]) -> Tensor:
    """The times of a falling list of noise levels sigma / alpha, such as NCSN's.

    Raises:
        ValueError: if a level is not on the path, or they do not fall.
    """
    try:
        values = torch.tensor([float(level) for level in levels], dtype=torch.float64)
    except (TypeError, ValueError):
        raise ValueError(f"expected a list of noise levels, as levels=(10,1,0.1), got {shown(levels)}") from None
    low, high = (math.exp(-float(sde.log_snr(t)) / 2) for t in (sde.t_min, sde.t_max))
    if len(values) == 0 or bool((values < low * (1 - 1e-6)).any()) or bool((values > high * (1 + 1e-6)).any()):
        raise ValueError(
            f"expected noise levels within [{low:g}, {high:g}] of {type(sde).__name__}, got {shown(list(levels))}: "
            "leave out the others"
        )
    if bool((values.diff() >= 0).any()):
        raise ValueError(f"expected noise levels that fall, got {shown(list(levels))}: sort them")
    return sde.time(-2 * values.log())


def leading(sde: SDE, steps: int, of: int = 1000) -> Tensor:
    """Every (of // steps)-th of `of` DDPM timesteps, counted from the first, where the grid ends: `steps` times.

    With a last denoising it is diffusers' "leading" spacing. Timestep k is the time (k + 1) / of of the path.
    """
    _at_least_one(steps, most=of)
    return _timesteps(sde, torch.arange(steps - 1, -1, -1) * (of // steps), of)


def trailing(sde: SDE, steps: int, of: int = 1000) -> Tensor:
    """Every (of / steps)-th of `of` DDPM timesteps counted down from the last: `steps` times.

    Lin et al. 2024, Table 2.
    """
    _at_least_one(steps, most=of)
    return _timesteps(sde, (torch.arange(steps, 0, -1) * of / steps).round().long() - 1, of)


def linspace(sde: SDE, steps: int, of: int = 1000) -> Tensor:
    """`steps` of `of` DDPM timesteps in equal strides from the last to the first, rounded: `steps` times."""
    _at_least_one(steps, most=of)
    # Counted from the first, as in numpy's linspace: halves then round as in diffusers.
    up = torch.arange(steps, dtype=torch.float64) * ((of - 1) / (steps - 1)) if steps > 1 else torch.tensor([of - 1.0])
    return _timesteps(sde, up.round().long().flip(0), of)


class StepDensity(NamedTuple):
    """The density of a grid's steps in log-SNR, up to a factor: `log_snr` (K,) rising, `density` (K,) positive."""

    log_snr: tuple[float, ...]
    density: tuple[float, ...]


def optimal(sde: SDE, steps: int, measured: StepDensity) -> Tensor:
    """Steps of a density that `step_density` measured: many where the model's denoiser changes."""
    _at_least_one(steps)
    at, density = np.array(measured.log_snr), np.array(measured.density)
    if len(at) != len(density) or len(at) < 2 or not (np.diff(at) > 0).all() or not (density > 0).all():
        raise ValueError("expected a density of positive numbers at two or more rising log-SNRs: measure it again")
    ends = [float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min)]
    at = np.linspace(ends[0], ends[1], 4001)
    density = np.interp(at, measured.log_snr, measured.density)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    log_snr = np.interp(np.linspace(0, share[-1], steps + 1), share, at)
    return _between_ends(sde, sde.time(torch.from_numpy(log_snr)))


def _spaced(sde: SDE, steps: int, warp: Callable[[Tensor], Tensor], unwarp: Callable[[Tensor], Tensor]) -> Tensor:
    """Equal steps in `warp(t)`, with the ends exactly the path's."""
    _at_least_one(steps)
    ends = warp(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    if ends.ndim > 1:
        check_one_level(sde, "a grid of noise levels", "use a grid in time, as grids.uniform(sde, 100)")
    start, end = ends
    return _between_ends(sde, unwarp(torch.lerp(start, end, torch.linspace(0, 1, steps + 1, dtype=torch.float64))))


def _between_ends(sde: SDE, ts: Tensor) -> Tensor:
    """The times with their ends exactly the path's; without a graph, which a learned path would give them."""
    ts = ts.detach()
    ts[0], ts[-1] = sde.t_max, sde.t_min
    return ts


def _timesteps(sde: SDE, k: Tensor, of: int) -> Tensor:
    return ((k + 1).double() * sde.t_max / of).clamp(sde.t_min, sde.t_max)


def _at_least_one(steps: int, most: int | None = None) -> None:
    if not hasattr(steps, "__index__") or steps < 1 or (most is not None and steps > most):
        within = f"at least 1{f' and at most {most}' if most else ''}"
        raise ValueError(f"expected steps to be {within}, got {shown(steps)}: give a whole number")
