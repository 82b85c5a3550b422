"""An exactly invertible solver: the explicit midpoint rule over two steps."""

import math
from dataclasses import dataclass

from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.multistep.ddim import DDIM
from scorefield.solvers.multistep.exponential import Coefficients
from scorefield.solvers.multistep.linear_multistep import predict
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Progress, Solver


@dataclass(frozen=True)
class BELM(Solver):
    """x_{i+1} from x_{i-1} and x_i by a rule that gives x_{i-1} from x_{i+1} and x_i: one evaluation a step, order 2.

        z_{i+1} = r^2 z_{i-1} + (1 - r^2) z_i + h (1 + r) dz/dl,   h = l_{i+1} - l_i,  r = h / (l_i - l_{i-1})

    with z = x / sqrt(alpha^2 + sigma^2), l half the log-SNR, and dz/dl = -alpha sigma v / (alpha^2 + sigma^2) for
    v = (alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2). A bidirectional explicit linear multistep method (Wang et al.
    2024, "BELM"), with coefficients of order 2 in the log-SNR. Equal steps have r = 1, so that the rule amplifies no
    rounding in either direction. Where the flow contracts, its second root grows: in float32 the inverse is exact to
    2e-5 for data of standard deviation 0.05. It is better than DDIM from 20 steps on.

    Called as any solver, it starts with a step of DDIM. For an exact inverse, keep the state before the last as well:

        z, before = BELM().pair(denoiser, sde, x, up)
        x, _ = BELM().pair(denoiser, sde, z, up.flip(0), before)
    """

    @property
    def remembers(self) -> bool:
        return True

    @property
    def restartable(self) -> bool:
        return False

    def pair(
        self,
        denoiser: DenoiserLike,
        sde: SDE,
        x: Tensor,
        ts: Tensor,
        neighbour: Tensor | None = None,
        *,
        cond: Cond | None = None,
        on_step: OnStep = None,
    ) -> tuple[Tensor, Tensor]:
        """The states at ts[-1] and at ts[-2], from those at ts[0] and at ts[1] (a step of DDIM unless given); (B, *D).

        Raises:
            ValueError: for a grid that is not one, or a neighbour of another shape.
        """
        if neighbour is not None and neighbour.shape != x.shape:
            raise ValueError(f"expected a neighbour of shape {tuple(x.shape)}, got {tuple(neighbour.shape)}")
        states = [x]

        def keep(progress: Progress) -> None:
            states[:] = [*states[-1:], progress.x]
            if on_step is not None:
                on_step(progress)

        started = self if neighbour is None else _Started(neighbour)
        end = started(denoiser, sde, x, ts, cond=cond, on_step=keep)
        return end, states[0]

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        if memory is None:
            return DDIM().step(denoiser, x, schedule, i, noise, None)[0], History((x,))
        of_before, own, what = schedule.cached((self, i), lambda: self._coefficients(schedule, i))
        prediction = predict(denoiser, x, schedule[i], what)
        (before,) = memory.states
        return of_before * before + own.of_x * x + own.weights[0] * prediction, History((x,))

    def _coefficients(self, schedule: Schedule, i: int) -> tuple[float, Coefficients, str]:
        """The coefficient of x_{i-1}, those of x_i and its prediction, and which prediction."""
        p, t, s = (schedule.scalars(k) for k in (i - 1, i, i + 1))
        size = [math.hypot(at.alpha, at.sigma) for at in (p, t, s)]
        h = (s.log_snr - t.log_snr) / 2
        ratio = (s.log_snr - t.log_snr) / (t.log_snr - p.log_snr)
        # v by the prediction that keeps its digits: (alpha x - R^2 x0) / (sigma R) or (R^2 eps - sigma x) / (alpha R)
        slope = -h * (1 + ratio) * size[2] / size[1] ** 2
        if t.sigma > t.alpha:
            of_x, of_prediction, what = t.alpha**2, -t.alpha * size[1] ** 2, "x0"
        else:
            of_x, of_prediction, what = -(t.sigma**2), t.sigma * size[1] ** 2, "eps"
        total = (1 - ratio**2) * size[2] / size[1] + slope * of_x / size[1]
        return (
            ratio**2 * size[2] / size[0],
            Coefficients(total, (slope * of_prediction / size[1],)),
            what,
        )


@dataclass(frozen=True, eq=False)
class _Started(BELM):
    """BELM whose first step is known."""

    neighbour: Tensor

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        if memory is None:
            return self.neighbour, History((x,))
        return super().step(denoiser, x, schedule, i, noise, memory)
