"""What a chain is made of: where it begins, how its steps are spread, and its last decoder, chosen on a few images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.compression.chain import Chain
from scorefield.compression.levels import ByLevel
from scorefield.likelihood.progress import ShareDone
from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, predict_noise, predict_x0
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.sde_lib.quantise import cell_width
from scorefield.sde_lib.sde import Noise

POINTS = 48  # intervals of the log-SNR in which the denoiser's error is measured
BYTES = 32  # steps of the density that a file keeps
STARTS = (0.15, 0.2, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # noise levels at which the chain may begin, in cells
STDS = (0.5, 0.7, 1.0, 1.4)  # of the discretised decoder, in units of the noise at the beginning
LEAST_DENSITY = 0.1  # of its mean
Curve = NDArray[np.float64]


@dataclass(frozen=True)
class ChainPlan:
    """A chain with its decoder, as a file keeps it.

    Args:
        steps: T.
        start: the time of z_0.
        density: of the steps over the log-SNR from the start to the end of the path, in bins of equal width, 1 .. 255.
        std: of `DiscretisedDecoder`, in units of the data; None for `LevelDecoder`.
    """

    steps: int
    start: float
    density: tuple[int, ...] = (1,)
    std: float | None = None

    def chain(self, sde: SDE) -> Chain:
        """The chain on the plan's times."""
        return Chain.of(sde, self.ts(sde))

    def ts(self, sde: SDE) -> Tensor:
        """The times, (T + 1,), rising."""
        share = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        density = torch.tensor(self.density, dtype=torch.float64)
        with torch.no_grad():
            high, low = (float(sde.log_snr(t)) for t in (self.start, sde.t_max))
            ts = sde.time(high - (high - low) * LevelDensity(density / density.sum()).position(share))
        ts[0], ts[-1] = self.start, sde.t_max
        return ts

    def decoder(self, sde: SDE, levels: int, low: float, high: float) -> ByLevel:
        """P(x | z_0)."""
        if self.std is not None:
            return ByLevel(levels, low, high, self.std, calls_denoiser=True)
        with torch.no_grad():
            noise = math.exp(-float(sde.log_snr(self.start)) / 2)
        return ByLevel(levels, low, high, noise, calls_denoiser=False)


def choose_plan(
    denoiser: DenoiserLike, sde: SDE, x0: Tensor, steps: int, levels: int, low: float, high: float, *,
    cond: Cond | None = None, noise: Noise = torch.randn_like, progress: ShareDone = None,
) -> ChainPlan:  # fmt: skip
    """The plan of the shortest bound of a few images x0 (B, *D), at the centres of their levels' cells.

    With m(SNR) = E|x0 - D|^2 / 2 a chain costs sum_i (SNR_s - SNR_t) m(SNR_t) nats. Its excess over the integral of m
    is least where steps have the density sqrt(SNR |dm / d log-SNR|) over the log-SNR. m is measured at 49 noise levels.
    For each start among the path's own and ten noise levels near the cell's width, and each decoder, the bound of
    such a chain is computed; the least is taken.
    """
    model, cell = BoundDenoiser(denoiser, cond, len(x0)), cell_width(levels, low=low, high=high)
    with torch.no_grad():
        ends = [float(sde.log_snr(t)) for t in (sde.t_min, sde.t_max)]
        at = np.linspace(ends[0], ends[1], POINTS + 1)
        starts = [ends[0], *(-2 * math.log(cell * share) for share in STARTS)]
        starts = [start for start in starts if ends[1] < start <= ends[0]]
        done, calls = 0, len(at) + len(starts)
        cost = np.empty(len(at))
        for i, log_snr in enumerate(at):
            x, eps, scales = _noised(sde, x0, log_snr, noise)
            cost[i] = math.exp(-log_snr) / 2 * float((predict_noise(model, x, *scales) - eps).double().square().mean())
            if progress is not None:
                progress((done := done + 1) / calls)
        cost = np.maximum.accumulate(cost)
        bounds: list[tuple[float, ChainPlan]] = []
        for start in starts:
            x, _, (alpha, sigma) = _noised(sde, x0, start, noise)
            density = _density(at, cost, start)
            t = float(f"{float(sde.time(torch.tensor(start, dtype=torch.float64))):.7g}")
            t = min(max(t, sde.t_min), sde.t_max)
            estimate = predict_x0(model, x, alpha, sigma)
            for std in (None, *STDS):
                std = None if std is None else float(f"{std * math.exp(-start / 2):.3g}")
                plan = ChainPlan(steps, t, density, std)
                coder = plan.decoder(sde, levels, low, high)
                log_p = coder.log_prob(x0, estimate if coder.calls_denoiser else x / expand(alpha, x))
                bounds.append((_diffusion(plan, sde, at, cost) - float(log_p.mean()), plan))
            if progress is not None:
                progress((done := done + 1) / calls)
    return min(bounds, key=lambda bound: bound[0])[1]


def _noised(sde: SDE, x0: Tensor, log_snr: float, noise: Noise) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    t = sde.time(torch.tensor(log_snr, dtype=torch.float64)).to(x0.device).expand(len(x0))
    eps = noise(x0)
    return sde.perturb(x0, t, eps), eps, sde.scales(t)


def _density(at: Curve, cost: Curve, start: float) -> tuple[int, ...]:
    """Of the steps from a start on, in bytes."""
    middle, width = np.exp((at[1:] + at[:-1]) / 2), at[0] - at[1]
    density = np.sqrt(middle * np.diff(cost) / width)
    density = np.convolve(np.pad(density, 1, mode="edge"), (0.25, 0.5, 0.25), "valid")
    density = np.maximum(density, LEAST_DENSITY * density.mean() + 1e-12)
    edges = np.linspace(start, at[-1], BYTES + 1)
    passed = np.interp(-edges, -at, np.append(0.0, density.cumsum()))
    share = np.diff(passed)
    return tuple(np.ceil(255 * share / share.max()).astype(int).tolist())


def _diffusion(plan: ChainPlan, sde: SDE, at: Curve, cost: Curve) -> float:
    """Nats for each dimension of the chain's steps and its prior's mismatch, by the measured cost."""
    log_snr = sde.log_snr(plan.ts(sde)).numpy()
    of_step = np.exp(np.interp(-log_snr[1:], -at, np.log(cost + 1e-300)))
    return float((-np.diff(np.exp(log_snr)) * of_step).sum())
