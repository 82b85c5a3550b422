"""Editing along a path: noise and denoise again, or encode under one condition and decode under another."""

from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import Cond, DenoiserLike, predict_x0
from scorefield.sde_lib.sde import Noise, check_one_level
from scorefield.solvers import grids
from scorefield.solvers.multistep.belm import BELM
from scorefield.solvers.multistep.dpm import StochasticDPMSolver
from scorefield.solvers.solver import OnStep, Solver
from scorefield.solvers.twisted import Twisted

CLEAN, NOISY = 0.01, 100.0  # sigma / alpha at the strengths 0 and 1


def sdedit(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    strength: float,
    *,
    solver: Solver = StochasticDPMSolver(),  # noqa: B008 - frozen
    steps: int = 50,
    grid: Callable[[SDE, int], Tensor] | Tensor = grids.log_snr,
    cond: Cond | None = None,
    noise: Noise = torch.randn_like,
    denoise: bool = True,
    on_step: OnStep = None,
) -> Tensor:
    """x_t = alpha x0 + sigma eps,  and from there a sample  (Meng et al. 2022, "SDEdit", Algorithm 1), (B, *D).

    The strength is a share of the way in log-SNR:  sigma / alpha = 0.01 * 10,000^strength.  So it means the same on
    every path, and at 0.5 there is as much noise as signal. At 0 the input comes back. At 1 it is forgotten: x is noise
    of the prior. Levels beyond the path's go to its ends.

    Args:
        denoiser: E[x0 | x], see `Solver`.
        sde: the path.
        x0: what is edited, in the model's values, (B, *D).
        strength: within [0, 1].
        solver: from t to data.
        steps: of the grid, before its times above t are left out.
        grid: a function of `solvers.grids`, or a falling grid of times.
        cond: keywords for the denoiser, with a row for each sample.
        noise: source of standard normals.
        denoise: end with x <- D(x) at the grid's last time.
        on_step: called with a `Progress` after each step.

    Raises:
        ValueError: for a strength that is no share, a path with a noise level for each dimension, particles; see
            `Solver`.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"expected a strength within [0, 1], got {strength}: 0.5 is as much noise as signal")
    check_one_level(sde, "sdedit", "use solvers.sample")
    if isinstance(solver, Twisted):
        raise ValueError(
            f"expected a solver of one state for sdedit, got {solver}, whose particles begin in the path's prior: use "
            "StochasticDPMSolver()"
        )
    if strength == 0:
        return x0
    ts = grid if isinstance(grid, Tensor) else grid(sde, steps)
    if strength == 1:
        x = sde.prior(tuple(x0.shape), noise=noise, dtype=x0.dtype, device=x0.device)
    else:
        ts = _below(ts, time_of_strength(sde, strength))
        x = sde.perturb(x0, ts[0], noise(x0))
    solver = solver.without_denoising()
    if len(ts) > 1:
        x = solver(denoiser, sde, x, ts, cond=cond, noise=noise, on_step=on_step)
    if denoise and not (solver.returns_x0 and len(ts) > 1):
        with torch.no_grad():
            x = predict_x0(denoiser, x, *sde.scales(ts[-1]), **(cond or {}))
    return x


def time_of_strength(sde: SDE, strength: float) -> float:
    """The time at which  sigma / alpha = 0.01 * 10,000^strength,  or the nearest end of the path."""
    level = torch.tensor(CLEAN * (NOISY / CLEAN) ** strength, dtype=torch.float64)
    return float(sde.time(-2 * level.log()))


def recondition(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    cond: Cond,
    other: Cond,
    *,
    ts: Tensor,
    solver: Solver = BELM(),  # noqa: B008 - frozen
    decoder: DenoiserLike | None = None,
    on_step: OnStep = None,
) -> Tensor:
    """Encode under one condition, and decode under another (Wu and De la Torre 2023, "CycleDiffusion"), (B, *D).

    What the conditions do not tell stays in the latent. With BELM and the same condition x0 comes back to rounding.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x0: what is edited, in the model's values, (B, *D).
        cond: what it is, keywords with a row for each sample.
        other: what it shall become.
        ts: a falling grid of times.
        solver: one that adds no noise.
        decoder: another denoiser for the way back, such as a guided one.
        on_step: called with a `Progress` after each step, of both ways.

    Raises:
        ValueError: for a solver that adds noise; see `Solver`.
    """
    back = denoiser if decoder is None else decoder
    if isinstance(solver, BELM):
        latent, before = solver.pair(denoiser, sde, x0, ts.flip(0), cond=cond, on_step=on_step)
        return solver.pair(back, sde, latent, ts, before, cond=other, on_step=on_step)[0]
    latent = solver(denoiser, sde, x0, ts.flip(0), cond=cond, on_step=on_step)
    return solver(back, sde, latent, ts, cond=other, on_step=on_step)


def _below(ts: Tensor, start: float) -> Tensor:
    """The grid from a time on: that time, and the later ones of a falling grid."""
    first = min(max(start, float(ts[-1])), float(ts[0]))
    return torch.cat([torch.tensor([first], dtype=ts.dtype), ts[ts < first].cpu()])
