"""EDM's churn: a little noise before each step of another solver."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.ode.runge_kutta import Heun
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, Solver


@dataclass(frozen=True)
class Churn(Solver):
    """Raise the noise from n to n (1 + gamma), then step down to the next level (Karras et al. 2022, Alg. 2).

    gamma = min(amount / N, sqrt(2) - 1) for low <= n <= high, else 0, with n = sigma / alpha on any path. N is the
    number of the grid's levels: the paper's steps, the last of which goes to 0. Levels stay on the path.

    Args:
        amount: S_churn.
        low, high: S_tmin and S_tmax.
        noise: S_noise, the standard deviation of the noise that is added.
        solver: a deterministic one-step solver; EDM's is Heun in sigma.

    Raises:
        ValueError: for an amount below 0, or a solver that adds noise or remembers its steps.
    """

    amount: float = 40.0
    low: float = 0.05
    high: float = 50.0
    noise: float = 1.003
    solver: Solver = field(default_factory=lambda: Heun("sigma"))

    def __post_init__(self) -> None:
        if not self.amount >= 0 or not self.noise >= 0:
            raise ValueError(f"expected amount and noise of 0 or more, got {self.amount} and {self.noise}")
        if self.solver.stochastic or self.solver.remembers:
            raise ValueError(
                f"expected a deterministic one-step solver to churn, got {self.solver}: use "
                "Heun('sigma'), Euler(), DDIM() or DPMSolver(multistep=False)"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def splits_batch(self) -> bool:
        return self.solver.splits_batch

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        detour, factors, added = schedule.cached(self, lambda: self._detour(schedule, x))
        x = factors[i] * x + added[i] * self.noise * noise(x)
        return self.solver.step(denoiser, x, detour, 2 * i, noise, None)[0], None

    def _detour(self, schedule: Schedule, x: Tensor) -> tuple[Schedule, list[float], list[float]]:
        """The times of raised and next levels in turn, and the two numbers of each rise:  x' = factor x + added z."""
        sde, count = schedule.sde, len(schedule)
        times = []
        for i in range(count - 1):
            t = schedule.scalars(i)
            gamma = min(self.amount / count, math.sqrt(2) - 1)
            churned = gamma > 0 and self.low <= t.sigma / t.alpha <= self.high
            times += [float(sde.time(t.log_snr - 2 * math.log1p(gamma))) if churned else t.t, schedule.scalars(i + 1).t]
        detour = Schedule(sde, torch.tensor(times, dtype=torch.float64), x, monotone=False)
        factors, added = [], []
        for i in range(count - 1):
            t, raised = schedule.scalars(i), detour.scalars(2 * i)
            factors.append(raised.alpha / t.alpha)
            added.append(math.sqrt(max(raised.sigma**2 - (factors[-1] * t.sigma) ** 2, 0.0)))
        return detour, factors, added
