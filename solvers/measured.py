"""Where a model wants its steps: where its denoiser changes, measured on a few of its trajectories."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_lib import SDE
from sde_lib.broadcast import DenoiserLike
from solvers import grids
from solvers.grids import StepDensity
from solvers.solver import Progress, Solver
from solvers.unipc import UniPC


def step_density(
    denoiser: DenoiserLike, sde: SDE, x: Tensor, *, order: int = 2, steps: int = 100, solver: Solver | None = None
) -> StepDensity:
    """The density of steps that makes a solver's error at the end least, from trajectories that start at x (B, *D).

    A step of h in the log-SNR with an exponential integrator of order p errs by c h^(p+1) |d^p D / d lambda^p| in
    x / alpha, of which the flow carries J to the end; the sum of all is least for steps of equal error, so of density

        (J |d^p D / d lambda^p|)^(1 / (p+1))

    Both are measured: the derivative by differences of D along the trajectories, its size the root mean square over
    all samples, and J as the spread of x / alpha at the end over that along the way. In the spirit of Sabour et al.
    2024, "Align your steps", which minimises a bound on the distance between discrete and continuous paths instead.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x: draws from the prior, (B, *D); a few dozen will do.
        order: of the solver that the grid is for.
        steps: of the trajectories.
        solver: that makes them.
    """
    if len(x) < 2 or steps < 8 * order:
        raise ValueError(f"expected at least 2 trajectories of {8 * order} steps, got {len(x)} of {steps}")
    answers, spreads = list[Tensor](), list[float]()
    ts = grids.log_snr(sde, steps)
    scales = [float(a) for a in sde.scales(ts)[0]]

    def keep(progress: Progress) -> None:
        assert progress.x0 is not None
        answers.append(progress.x0.detach().double().cpu())
        spreads.append(float((progress.x / scales[progress.step]).double().std(0).square().mean().sqrt()))

    (solver or UniPC())(denoiser, sde, x, ts, on_step=keep)
    change = [torch.stack(answers[i : i + order + 1]).diff(n=order, dim=0).square().mean().sqrt()
              for i in range(len(answers) - order)]  # fmt: skip
    carried = spreads[-1] / np.array(spreads[order // 2 : order // 2 + len(change)])
    density = (np.array(change) * carried) ** (1 / (order + 1))
    if not np.isfinite(density).all() or not density.max() > 0:
        raise ValueError("expected a denoiser that changes along its trajectories, and got constants or NaN")
    density = _smooth(density, width=max(steps // 25, 1))
    at = sde.log_snr(ts)[order // 2 : order // 2 + len(change)]
    return StepDensity(tuple(at.tolist()), tuple((density / density.mean()).tolist()))


def _smooth(density: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """A moving mean, and nowhere less than a tenth of the whole mean: what a few trajectories missed gets steps too."""
    kernel = np.exp(-0.5 * (np.arange(-3 * width, 3 * width + 1) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    padded = np.pad(density, 3 * width, mode="edge")
    smooth: NDArray[np.float64] = np.convolve(padded, kernel, mode="valid")
    return smooth.clip(min=0.1 * float(smooth.mean()))
