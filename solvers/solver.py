"""What every solver is: frozen settings, one step, and a loop over a grid."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.arguments import check_samples, shown
from scorefield.sde_lib.broadcast import like
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, predict_x0
from scorefield.sde_lib.sde import Noise, check_one_level, check_path
from scorefield.solvers.schedule import Schedule

TOLERANCE = 1e-2  # of the largest answer; in half precision and TF32 networks differ less from batch to batch


class Progress(NamedTuple):
    """The state of a solver: `step` of `steps` are done, `x` is at time `t`, and `x0` is the denoiser's last answer.

    Where each sample has its own steps, `step` and `steps` count the samples that have arrived, and `t` is nan. `x0` is
    None when the last answer was not for all samples.
    """

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor | None = None


OnStep = Callable[[Progress], None] | None


class History(NamedTuple):
    """What a step leaves to the next: the last states and predictions, newest first, and the noise of the last step.

    Without states no step is corrected: a Langevin corrector moves x between steps.
    """

    states: tuple[Tensor, ...] = ()
    predictions: tuple[Tensor, ...] = ()
    noise_term: Tensor | None = None


class Solver(abc.ABC):
    """Takes `x` along the grid `ts`: a falling grid samples, a rising one encodes.

    A solver is a frozen dataclass of its settings. Most define `step`. A solver that is more than a sequence of
    steps defines `run`.
    """

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise. It then samples and cannot encode."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a step makes use of the steps before it."""
        return False

    @property
    def restartable(self) -> bool:
        """Whether a step can start from a state that a corrector has moved."""
        return True

    @property
    def fixed_grid(self) -> bool:
        """Whether it visits every time of the grid. Otherwise only the first and the last count."""
        return True

    @property
    def splits_batch(self) -> bool:
        """Whether it calls the denoiser with some samples of the batch."""
        return False

    @property
    def elementwise(self) -> bool:
        """Whether it takes a path with a noise level for each dimension: its steps are in time and by f and g alone."""
        return False

    @property
    def returns_x0(self) -> bool:
        """Whether its result is an estimate of x0, which is not denoised again."""
        return False

    def without_denoising(self) -> "Solver":
        """The solver without a last step x <- D(x), for callers that take one themselves."""
        return self

    def __call__(
        self,
        denoiser: DenoiserLike,
        sde: SDE,
        x: Tensor,
        ts: Tensor,
        *,
        cond: Cond | None = None,
        noise: Noise = torch.randn_like,
        on_step: OnStep = None,
    ) -> Tensor:
        """`x (B, *D)` at `ts[0]`, taken to `ts[-1]`.

        Gradients flow through the steps when `x` requires them.

        Args:
            denoiser: E[x0 | x], called as `denoiser(x, alpha, sigma, **cond)` and answering (B, *D). Scales are float64
                of shape (), or (B,) where each sample has its own steps.
            sde: the path.
            x: the state at the grid's first time, (B, *D).
            ts: 1-D grid of times; see `solvers.grids`.
            cond: keywords for the denoiser. Tensors have a row for each sample, (B, ...).
            noise: source of standard normals, `noise(x)` like `x`. `PerSampleNoise` gives each sample its own.
            on_step: called with a `Progress` after each step.

        Raises:
            ValueError: for a grid, a path or a denoiser that is none, or a rising grid when the solver is stochastic;
                for integer or complex x, answers of another shape than x, and a denoiser that depends on its batch
                where the solver splits it.
        """
        self.check_takes(sde)
        check_samples(x)
        bound = BoundDenoiser(denoiser, cond, len(x))
        if on_step is not None:
            bound.keep_last()
            on_step = _with_last_x0(on_step, bound)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            schedule = Schedule(sde, ts, x)
            self._check(schedule)
            if self.splits_batch:
                check_splittable(bound, x, schedule)
            return self.run(bound, x, schedule, lambda y: like(noise(y), y, "the noise"), on_step)

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        """All the steps of the grid."""
        memory = None
        for i in range(len(schedule) - 1):
            x, memory = self.step(denoiser, x, schedule, i, noise, memory)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule) - 1, float(schedule.ts[i + 1]), x))
        return x

    @abc.abstractmethod
    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        """`x` at time i of the schedule, taken to time i + 1, and the memory for the next step (None at first).

        The denoiser is called as `denoiser(x, alpha, sigma)`: its conditioning is bound to it.
        """

    def check_takes(self, sde: SDE) -> None:
        """Raises ValueError for what is no path, or one with a noise level for each dimension if it needs one level."""
        check_path(sde)
        if not self.elementwise:
            check_one_level(sde, str(self), "use Euler(), Heun() or RK4() in time, or sample by EulerMaruyama()")

    def _check(self, schedule: Schedule) -> None:
        if len(schedule) < 2:
            raise ValueError("expected a grid of at least two times, got one: ask solvers.grids for one step or more")
        if self.stochastic and schedule.increasing:
            raise ValueError(
                f"expected a falling grid for {self}, which adds noise, got a rising one: flip the grid to sample, or "
                "encode with DDIM(), Heun() or Adaptive()"
            )


def check_splittable(denoiser: BoundDenoiser, x: Tensor, schedule: Schedule) -> None:
    """Raises ValueError for a denoiser whose answer for a sample depends on its batch.

    The answers for the last and the first sample, in this order, are compared with those in the batch. Both are
    computed at the schedule's first and last noise level, and where alpha = sigma, or as near as the schedule has it.
    x is scaled to each level.
    """
    if len(x) < 2:
        return
    sde, (start, end) = schedule.sde, schedule.ts[[0, -1]]
    middle = sde.time(torch.zeros_like(start)).clamp(min(start, end), max(start, end))
    times = Schedule(sde, torch.stack([start, middle, end]), x, monotone=False)
    rows = torch.tensor([len(x) - 1, 0], device=x.device)[: len(x) - 1]
    part = denoiser.take(rows)
    with torch.no_grad():
        for i in range(3):
            at = times[i]
            size = torch.hypot(at.alpha, at.sigma)
            y = x * (size / torch.hypot(times[0].alpha, times[0].sigma)).to(x.dtype)
            together = predict_x0(denoiser.denoiser, y, at.alpha, at.sigma, **denoiser.cond)
            try:
                apart = predict_x0(part.denoiser, y[rows], at.alpha, at.sigma, **part.cond)
                difference = float((together[rows] - apart).abs().max())
            except Exception as error:
                raise ValueError(f"{_EXPECTED} an error for a part of the batch ({shown(error)}): {_ADVICE}") from error
            # A network's rounding is multiplied by up to sigma / alpha in D.
            if difference * float(at.alpha / size) > TOLERANCE * float(together.abs().max()):
                raise ValueError(f"{_EXPECTED} one that differs by {difference:.2g} in a part of the batch: {_ADVICE}")


_EXPECTED = "expected a denoiser whose answer for a sample does not depend on its batch, got"
_ADVICE = (
    "pass data of each sample as cond={...}, with a row for each, put a module in evaluation mode, or use a solver "
    "that keeps the batch together"
)


def _with_last_x0(on_step: Callable[[Progress], None], denoiser: BoundDenoiser) -> OnStep:
    """`on_step` with the denoiser's last answer in each Progress."""

    def call(progress: Progress) -> None:
        x0 = denoiser.last_x0()
        on_step(progress._replace(x0=x0 if x0 is not None and x0.shape == progress.x.shape else None))

    return call
