"""What every solver is: frozen settings, one step, and a loop over a grid."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefield.sde_lib import SDE, expand, predict_noise
from scorefield.sde_lib.broadcast import DenoiserLike, of_rows
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.schedule import Schedule


class Progress(NamedTuple):
    """Where a solver is: `step` of `steps` are done, `x` is at time `t`, and the denoiser's last answer was `x0`.

    Where samples have steps of their own, these are counted in samples that have arrived, `t` is nan, and `x0` is None
    while it is not of all of them.
    """

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor | None = None


OnStep = Callable[[Progress], None] | None


class Solver(abc.ABC):
    """Takes `x` along the grid `ts`: a falling grid samples, a rising one encodes.

    A solver is a frozen dataclass of its settings. Most define `step`; those that are more than a
    sequence of steps define `run`.
    """

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise, and so can only go down the path."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a step makes use of the steps before it."""
        return False

    def __call__(
        self,
        denoiser: DenoiserLike,
        sde: SDE,
        x: Tensor,
        ts: Tensor,
        *,
        noise: Noise = torch.randn_like,
        on_step: OnStep = None,
    ) -> Tensor:
        """`x (B, *D)` at `ts[0]`, taken to `ts[-1]`.

        Gradients flow through the steps when `x` requires them.

        Args:
            denoiser: E[x0 | x], called as `denoiser(x, alpha, sigma)` with float64 scales of shape (), or (B,) by
                solvers that give samples steps of their own; it answers (B, *D).
            sde: the path.
            x: where to start, (B, *D).
            ts: 1-D grid of times; see `solvers.grids`.
            noise: source of standard normals, `noise(x)` like `x`; `PerSampleNoise` gives each sample its own.
            on_step: called with a `Progress` after each step: where the solver is, x, and the denoiser's last x0.

        Raises:
            ValueError: for a grid that is not one, or a rising one when the solver is stochastic; for integer x, and
                answers of another shape than x.
        """
        if not x.is_floating_point():
            raise ValueError(f"expected floating-point samples, got {x.dtype}: dequantise integers, or cast them")
        schedule = Schedule(sde, ts, x)
        self._check(schedule)
        answers: list[Callable[[], Tensor]] = []
        denoiser = _Asked(denoiser, answers)
        if on_step is not None:
            on_step = _telling(on_step, answers)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return self.run(denoiser, x, schedule, noise, on_step)

    def run(self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        """All the steps of the grid."""
        memory = None
        for i in range(len(schedule) - 1):
            x, memory = self.step(denoiser, x, schedule, i, noise, memory)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), x))
        return x

    @abc.abstractmethod
    def step(
        self, denoiser: DenoiserLike, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        """`x` at time i of the schedule, taken to time i + 1, and what the next step must remember (None at first)."""

    def _check(self, schedule: Schedule) -> None:
        if len(schedule) < 2:
            raise ValueError("expected a grid of at least two times, got one: ask solvers.grids for one step or more")
        if self.stochastic and schedule.increasing:
            raise ValueError(
                f"{self} adds noise, so it cannot encode along an increasing grid: "
                "flip the grid to sample, or encode with DDIM(), Heun() or Adaptive()"
            )


class _Asked:
    """A denoiser whose answers have the shape and dtype of x, and the last of which is kept."""

    def __init__(self, denoiser: DenoiserLike, answers: list[Callable[[], Tensor]]) -> None:
        self.denoiser = denoiser
        self.answers = answers

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        out = _fitting(self.denoiser(x, alpha, sigma), x)
        self.answers[:] = [lambda: out]
        return out

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        direct = getattr(self.denoiser, "noise", None)
        if not callable(direct):
            return predict_noise(self.__call__, x, alpha, sigma)
        eps = _fitting(direct(x, alpha, sigma), x)
        self.answers[:] = [lambda: (x - expand(sigma, x) * eps) / expand(alpha, x)]
        return eps

    def rows(self, rows: slice | Tensor) -> "_Asked":
        return _Asked(of_rows(self.denoiser, rows), self.answers)


def _fitting(answer: Tensor, x: Tensor) -> Tensor:
    if answer.shape != x.shape:
        raise ValueError(
            f"expected the denoiser to answer in the shape of x, {tuple(x.shape)}, got {tuple(answer.shape)}"
        )
    return answer.to(x.dtype)


def _telling(on_step: Callable[[Progress], None], answers: list[Callable[[], Tensor]]) -> OnStep:
    """`on_step`, told the last answer as well."""

    def tell(progress: Progress) -> None:
        x0 = answers[0]() if answers else None
        on_step(progress._replace(x0=x0 if x0 is not None and x0.shape == progress.x.shape else None))

    return tell
