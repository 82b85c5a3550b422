"""Annealed Langevin dynamics, as a solver or as a corrector."""

import math
import warnings
from dataclasses import dataclass, replace

from scipy.optimize import minimize_scalar
from torch import Tensor

from scorefield.sde_lib import predict_noise
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.sde_lib.sde import Noise
from scorefield.solvers.scales import Scales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Progress, Solver

NORMS = ("expected", "sample", "batch")
FEW_DIMS = 40  # below, measured norms make the variance 10% too large


@dataclass(frozen=True)
class AnnealedLangevin(Solver):
    """x <- x + a score / 2 + sqrt(a) z, `steps` times at each noise level of the grid, the first and last included.

    Song and Ermon 2019, Alg. 1, whose step is  a_i = step_size sigma_i^2 / sigma_L^2 (NCSNv2 has the same rule, with
    epsilon = step_size / 2, and chooses it: Song and Ermon 2020, Technique 4 and Proposition 3).  On a path
    with a varying alpha, x is scaled along with it: x / alpha follows the published algorithm at levels sigma / alpha.

    With `snr` the step is instead  a = 4 (snr |z| / |score|)^2,  the corrector of Song et al. 2021, Alg. 4-5
    (without the factor 1 - beta_i, close to one, that Alg. 5 has on VP).
    Measured norms make the step depend on the noise that it scales. In small steps the density of a Gaussian then tends
    to p(x) |x|^2 at p's variance times 1 + 2 / d, whose variance is (1 + 2 / d)^2 times the exact one: 4, 2.25, 1.27
    and 1.06 for d = 2, 4, 16, 64. At any step tails are heavy, and up to d = 4 the variance has no bound. So norms are
    replaced by their root mean squares, |z| = sqrt(d) and |score| = sqrt(d) / sigma, unless `norms` says otherwise.

    Args:
        steps: at each level; by default 100 with NCSN's rule and 1 with `snr`.
        step_size: epsilon of NCSN's rule; None for NCSNv2's choice, which keeps the variance from level to level as
            nearly as the number of steps and the grid's mean ratio of levels allow.
        snr: the corrector's signal-to-noise ratio; replaces NCSN's rule.
        norms: "expected", or measured: "sample" for each sample, "batch" for the batch's mean as in the paper's
            released code (a sample then depends on its batch). Few dimensions get a warning.
        denoise: end with  x <- D(x)  at the last level (Jolicoeur-Martineau et al. 2021, Section 2.2).
    """

    steps: int | None = None
    step_size: float | None = 2e-5
    snr: float | None = None
    norms: str = "expected"
    denoise: bool = True

    def __post_init__(self) -> None:
        if self.norms not in NORMS:
            raise ValueError(f"expected norms to be one of {', '.join(NORMS)}, got {self.norms!r}")
        if self.snr is None and self.norms != "expected":
            raise ValueError(f"expected an snr with norms={self.norms!r}: NCSN's rule has no norms")
        if self.snr is not None and self.step_size != AnnealedLangevin.step_size:
            raise ValueError(f"expected snr or step_size, got {self.snr} and {self.step_size}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"expected at least 1 Langevin step a level, got {self.steps}")
        if (self.step_size is not None and not self.step_size > 0) or (self.snr is not None and not self.snr > 0):
            raise ValueError(
                f"expected a positive step_size, and snr if it is given, got {self.step_size} and {self.snr}"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def restartable(self) -> bool:
        return False

    def without_denoising(self) -> "AnnealedLangevin":
        return replace(self, denoise=False)

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        for i in range(len(schedule)):
            if i > 0:
                x = x * (schedule[i].alpha / schedule[i - 1].alpha)
            x = self.correct(denoiser, x, schedule, i, noise)
            if on_step is not None:
                on_step(Progress(i + 1, len(schedule), float(schedule.ts[i]), x))
        last = schedule[-1]
        return denoiser(x, last.alpha, last.sigma) if self.denoise else x

    def correct(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise) -> Tensor:
        """Langevin steps towards the marginal at time i of the schedule."""
        at = schedule[i]
        for _ in range(self.steps or (100 if self.snr is None else 1)):
            z = noise(x)
            score = -predict_noise(denoiser, x, at.alpha, at.sigma) / expand(at.sigma, x)
            a = self._step_size(schedule, at, score, z)
            x = x + a / 2 * score + a.sqrt() * z
        return x

    def _step_size(self, schedule: Schedule, at: Scales, score: Tensor, z: Tensor) -> Tensor:
        if self.snr is None:
            if self.step_size is None:
                epsilon = schedule.cached(self, lambda: variance_preserving_step(schedule, self.steps or 100))
                return expand(epsilon * at.sigma**2, z)
            last = schedule[-1]
            return expand(self.step_size * (at.sigma * last.alpha / last.sigma) ** 2, z)
        if self.norms == "expected":
            return expand(4 * (self.snr * at.sigma) ** 2, z)
        dims = z[0].numel() * (len(z) if self.norms == "batch" else 1) if len(z) else FEW_DIMS
        if dims < FEW_DIMS:
            warnings.warn(
                f"norms={self.norms!r} of {dims} dimensions makes the variance {(1 + 2 / dims) ** 2:.2g} times too "
                "large or more: use norms='expected'",
                stacklevel=2,
            )
        norms = z.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
        of_noise, of_score = (norm.mean() for norm in norms) if self.norms == "batch" else norms
        return expand(4 * (self.snr * of_noise / of_score) ** 2, z)

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        """One level of the anneal: scale to the next and correct there."""
        x = x * (schedule[i + 1].alpha / schedule[i].alpha)
        return self.correct(denoiser, x, schedule, i + 1, noise), None

    def _check(self, schedule: Schedule) -> None:
        if len(schedule) > 1:
            super()._check(schedule)


def variance_preserving_step(schedule: Schedule, steps: int) -> float:
    """The step, in units of sigma^2, that best keeps the variance across levels (Song and Ermon 2020, Proposition 3).

    With e = epsilon / sigma_L^2 and gamma the ratio of levels, the variance after `steps` steps at a level is
    (1 - e)^(2 steps) (gamma^2 - 2 / (2 - e)) + 2 / (2 - e)  times the exact one.
    """
    levels = max(len(schedule) - 1, 1)
    gamma = math.exp((schedule.scalars(-1).log_snr - schedule.scalars(0).log_snr) / 2 / levels)

    def excess(e: float) -> float:
        return abs((1 - e) ** (2 * steps) * (gamma**2 - 2 / (2 - e)) + 2 / (2 - e) - 1)

    return 2 * float(minimize_scalar(excess, bounds=(1e-8, 1.0), method="bounded", options={"xatol": 1e-10}).x)
