"""DDPM's discrete betas as a continuous path: log alpha-bar, interpolated between its steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.broadcast import as_tensor, precise
from scorefield.sde_lib.sde import SDE


def _linear(steps: int, start: float, end: float) -> Tensor:
    """Ho et al. 2020, Section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    """Rombach et al. 2022, Appendix E.1: linear in sqrt(beta)."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Nichol and Dhariwal 2021, Eq. 17, with s = 0.008 and beta at most 0.999; it ignores start and end."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "cosine": _cosine}


@dataclass(frozen=True)
class DiscreteVPSDE(SDE):
    """Variance preserving through the steps of a DDPM:  alpha(i / T)^2 = prod_{j <= i} (1 - beta_j).

    Between the steps log alpha is the monotone cubic of Fritsch and Butland 1984, so that the drift
    is continuous; at them it is exact. Timestep k = 0 .. T-1 of a DDPM is the time (k + 1) / T.

    Args:
        betas: "linear", "scaled_linear", "cosine", or the betas themselves.
        steps: T, for the named schedules.
        beta_start, beta_end: first and last beta of "linear" and "scaled_linear".

    Raises:
        ValueError: for an unknown name, or betas that are not all strictly between 0 and 1.
    """

    betas: str | Sequence[float] = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.betas, str):
            if self.betas not in BETAS:
                raise ValueError(f"expected betas to be one of {', '.join(BETAS)} or a list, got {shown(self.betas)}")
            betas = BETAS[self.betas](self.steps, self.beta_start, self.beta_end)
        else:
            betas = torch.tensor(list(self.betas), dtype=torch.float64)
        if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"expected at least two betas strictly between 0 and 1, got {shown(self.betas)}")
        object.__setattr__(self, "steps", len(betas))
        object.__setattr__(self, "betas", tuple(betas.tolist()))

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    @property
    def named(self) -> str | tuple[float, ...]:
        """The name of the schedule, if its betas are exactly that one's with these settings, or the betas."""
        betas = tuple(self.betas)
        for name, schedule in BETAS.items():
            if tuple(schedule(self.steps, self.beta_start, self.beta_end).tolist()) == betas:
                return name
        return betas  # type: ignore[return-value]

    @cached_property
    def _cubics(self) -> Tensor:
        """The four coefficients of log alpha on each interval, lowest power first, (4, T), float64."""
        with torch.inference_mode(False):  # what is kept must serve outside it too
            rise = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)) / 2
            start = torch.cat([torch.zeros(1, dtype=torch.float64), rise.cumsum(0)[:-1]])
            slope = torch.cat([rise[:1], 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1]), rise[-1:]])
            left, right = slope[:-1], slope[1:]
            return torch.stack([start, left, 3 * rise - 2 * left - right, left + right - 2 * rise])

    def log_alpha(self, t: Tensor) -> Tensor:
        # In float32 t * steps keeps 3e-5 of a step, and the last steps of "cosine" are steep: float64 within.
        position = precise(t) * self.steps
        interval = position.detach().long().clamp(0, self.steps - 1)
        a, b, c, d = self._cubics.to(position.device, position.dtype)[:, interval]
        s = position - interval
        log_alpha: Tensor = (a + s * (b + s * (c + s * d))).to(t.dtype)
        return log_alpha

    def time(self, log_snr: Tensor | float) -> Tensor:
        # The interval by search, the place in it by Newton's method: the cubic is monotone and nearly straight.
        log_snr = as_tensor(log_snr)
        target = logsigmoid(precise(log_snr)) / 2
        a, b, c, d = self._cubics.to(target.device, target.dtype)
        interval = torch.searchsorted(-a, -target, right=True).clamp(1, self.steps) - 1
        a, b, c, d = (column[interval] for column in (a, b, c, d))
        s = torch.full_like(target, 0.5)
        for _ in range(12):
            s = (s - (a - target + s * (b + s * (c + s * d))) / (b + s * (2 * c + s * 3 * d))).clamp(0, 1)
        return ((interval + s) / self.steps).clamp(self.t_min, self.t_max).to(log_snr.dtype)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(-torch.expm1(2 * self.log_alpha(t))) / 2
