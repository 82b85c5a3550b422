"""DDIM and DDPM's ancestral sampling: steps that are exact for a constant denoiser."""

import math
from dataclasses import dataclass

from scorefield.solvers.multistep.exponential import Coefficients
from scorefield.solvers.multistep.linear_multistep import LinearMultistep
from scorefield.solvers.scales import ScalarScales
from scorefield.solvers.schedule import Schedule


@dataclass(frozen=True)
class DDIM(LinearMultistep):
    """x_s = alpha_s D + sqrt(sigma_s^2 - tau^2) eps + tau z,   tau^2 = eta^2 sigma_s^2 (1 - exp(lambda_t - lambda_s)).

    Song, Meng and Ermon 2021, Eq. 12 and 16, on any path. eta = 0 is deterministic, of order 1, and goes
    both ways; eta = 1 is `Ancestral()`. One evaluation a step.

    Raises:
        ValueError: if eta is not within [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"expected eta within [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        if self.eta == 0:
            return renoised(t, s, 0.0)
        return renoised(t, s, self.eta * s.sigma * math.sqrt(-math.expm1(t.log_snr - s.log_snr)))


@dataclass(frozen=True)
class Ancestral(LinearMultistep):
    """x_s drawn from q(x_s | x_t, x0 = D), DDPM's ancestral sampling: one evaluation a step.

    Ho et al. 2020, Eq. 7 and Section 3.2, on any path: the mean is DDIM's of eta = 1, and the variance

        "small":  sigma_s^2 (1 - exp(lambda_t - lambda_s)), the posterior's, beta-tilde;
        "large":  sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, that of a forward step, beta. The result has the noise
                  of the level before the last; a last denoising removes it.

    Raises:
        ValueError: for another variance.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"expected variance 'small' or 'large', got {self.variance!r}")

    @property
    def stochastic(self) -> bool:
        return True

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        step = DDIM(eta=1.0).coefficients(schedule, i, count)
        if self.variance == "small":
            return step
        return step._replace(noise=step.noise * schedule.scalars(i).sigma / schedule.scalars(i + 1).sigma)


@dataclass(frozen=True)
class ConsistentAnnealed(LinearMultistep):
    """x_s = alpha_s (D + (1 - eta) n_t eps) + tau z with all of the next level's noise, n = sigma / alpha.

    tau^2 = sigma_s^2 - (alpha_s (1 - eta) n_t)^2: consistent annealed sampling (Jolicoeur-Martineau et al. 2021,
    "Adversarial score matching and improved sampling for image generation", Alg. 2), one evaluation a level.

    Args:
        eta: the share of the noise that a step removes. By default 1.5 times the least that the grid's step allows,
            1 - n_s / n_t, and at most 1. The paper's settings have about this proportion.

    Raises:
        ValueError: if eta is not within (0, 1], or for a grid with a step too large for it.
    """

    eta: float | None = None

    def __post_init__(self) -> None:
        if self.eta is not None and not 0 < self.eta <= 1:
            raise ValueError(f"expected eta within (0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return True

    def coefficients(self, schedule: Schedule, i: int, count: int) -> Coefficients:
        t, s = schedule.scalars(i), schedule.scalars(i + 1)
        least = -math.expm1((t.log_snr - s.log_snr) / 2)
        eta = min(1.5 * least, 1.0) if self.eta is None else self.eta
        left = (1 - eta) / (1 - least)  # of the next level's noise
        return renoised(t, s, s.sigma * math.sqrt(1 - left**2))

    def _check(self, schedule: Schedule) -> None:
        super()._check(schedule)
        longest = -math.expm1(-float(schedule.sde.log_snr(schedule.ts).diff().max()) / 2)
        if self.eta is not None and self.eta < longest:
            raise ValueError(
                f"expected steps that remove at most {self.eta:g} of the noise for eta={self.eta:g}, got one of "
                f"{longest:.3g}: take more steps on a geometric grid, a larger eta, or eta=None"
            )


def renoised(t: ScalarScales, s: ScalarScales, tau: float) -> Coefficients:
    """x_s = alpha_s D + sqrt(sigma_s^2 - tau^2) eps + tau z,  with  eps = (x - alpha_t D) / sigma_t."""
    ratio = math.sqrt(max(s.sigma**2 - tau**2, 0.0)) / t.sigma
    return Coefficients(ratio, (s.alpha - t.alpha * ratio,), tau)
