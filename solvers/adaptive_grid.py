"""A grid for a model: more steps where its denoiser changes, measured on a few of its trajectories."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import Cond, DenoiserLike
from scorefield.solvers import grids
from scorefield.solvers.grids import StepDensity
from scorefield.solvers.multistep.unipc import UniPC
from scorefield.solvers.solver import OnStep, Progress


def step_density(
    denoiser: DenoiserLike,
    sde: SDE,
    x: Tensor,
    *,
    cond: Cond | None = None,
    order: int = 2,
    steps: int = 100,
    on_step: OnStep = None,
) -> StepDensity:
    """The density of steps that minimises a solver's error at the end, from trajectories that start at x (B, *D).

    A step of h in the log-SNR with an exponential integrator of order p has the error c h^(p+1) |d^p D / d lambda^p| in
    x / alpha. The flow multiplies it by J until the end. The sum of all is least for steps of equal error, of density

        (J |d^p D / d lambda^p|)^(1 / (p+1))

    Both are measured. The derivative is a difference of D along the trajectories, as a root mean square over all
    samples. J is the spread of x / alpha at the end over that on the way. Sabour et al. 2024, "Align your steps",
    minimise a bound on the distance between discrete and continuous paths instead.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x: draws from the prior, (B, *D). A few dozen are enough.
        cond: keywords for the denoiser, see `Solver`.
        order: of the solver that will use the grid.
        steps: of the trajectories, by UniPC.
        on_step: called after each step, see `Solver`.

    Raises:
        ValueError: for too few trajectories or steps, or a denoiser that does not change, or gives NaN.
    """
    if len(x) < 2 or steps < 8 * order:
        raise ValueError(f"expected at least 2 trajectories of {8 * order} steps, got {len(x)} of {steps}: take more")
    ts = grids.log_snr(sde, steps)
    scales = sde.scales(ts)[0].tolist()
    answers, spreads = list[Tensor](), [_spread(x / scales[0])]

    def keep(progress: Progress) -> None:  # x0 is at the time before the step, and x at the time after it
        assert progress.x0 is not None
        answers.append(progress.x0.detach().cpu().double())
        spreads.append(_spread(progress.x / scales[progress.step]))
        if on_step is not None:
            on_step(progress)

    UniPC()(denoiser, sde, x, ts, cond=cond, on_step=keep)
    change = [torch.stack(answers[i : i + order + 1]).diff(n=order, dim=0).square().mean().sqrt()
              for i in range(len(answers) - order)]  # fmt: skip
    carried = spreads[-1] / np.array(spreads[order // 2 : order // 2 + len(change)])
    density = (np.array(change) * carried) ** (1 / (order + 1))
    if not np.isfinite(density).all() or not density.max() > 0:
        raise ValueError(
            "expected a denoiser that changes along its trajectories, got constants or NaN: train it first"
        )
    density = _smooth(density, width=max(steps // 25, 1))
    at = sde.log_snr(ts)[order // 2 : order // 2 + len(change)]
    return StepDensity(tuple(at.tolist()), tuple((density / density.mean()).tolist()))


def _spread(x: Tensor) -> float:
    """The root mean square over coordinates of the samples' standard deviation."""
    return float(x.detach().cpu().double().std(0).square().mean().sqrt())


def _smooth(density: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """A moving mean, at least a tenth of the total mean: levels that a few trajectories missed get steps too."""
    kernel = np.exp(-0.5 * (np.arange(-3 * width, 3 * width + 1) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    padded = np.pad(density, 3 * width, mode="edge")
    smooth: NDArray[np.float64] = np.convolve(padded, kernel, mode="valid")
    return smooth.clip(min=0.1 * float(smooth.mean()))
