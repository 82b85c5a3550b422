"""What a network predicts, as four functions of the scales:  D = c_skip x + c_out F(c_in x, c_noise).

Each parameterisation is a function `(alpha, sigma) -> (c_in, c_skip, c_out, c_noise)`, after Karras et al. 2022
(Eq. 7), written for  x = alpha x0 + sigma eps  with any alpha. They differ in the target of F. `c_in` keeps the input
of F at unit variance when the data has unit variance. On a variance-preserving path it is 1, as in DDPM.

The noise level that F gets is the same for all:  c_noise = log(sigma / alpha) / 4 = -log-SNR / 8  (EDM, Table 1). It is
no time, so a network that was trained along one path can be sampled along another.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import Scale, as_tensor

Preconditioning = tuple[Tensor, Tensor, Tensor, Tensor]
Precondition = Callable[[Tensor, Tensor], Preconditioning]


def _of_scales(function: Precondition) -> Callable[[Scale, Scale], Preconditioning]:
    """The function of tensors, for plain numbers too."""

    @functools.wraps(function)
    def of_scales(alpha: Scale, sigma: Scale) -> Preconditioning:
        return function(as_tensor(alpha), as_tensor(sigma))

    return of_scales


@_of_scales
def score(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """F = grad log p(x), fed x as it is:  D = (x + sigma^2 F) / alpha  (Song and Ermon 2019, Eq. 5)."""
    return torch.ones_like(sigma), 1 / alpha, sigma**2 / alpha, noise_level(alpha, sigma)


@_of_scales
def scaled_score(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """F = sigma grad log p(x) = -eps, fed x as it is:  D = (x + sigma F) / alpha  (Song and Ermon 2020, Section 3.3).

    What networks give before they divide by the noise level: NCSNv2, and NCSN++ where it is trained along VE.
    """
    return torch.ones_like(sigma), 1 / alpha, sigma / alpha, noise_level(alpha, sigma)


@_of_scales
def eps(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """F = eps:  D = (x - sigma F) / alpha  (Ho et al. 2020, Eq. 11 and 15)."""
    return 1 / torch.hypot(alpha, sigma), 1 / alpha, -sigma / alpha, noise_level(alpha, sigma)


@_of_scales
def x0(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """F = x0:  D = F."""
    return 1 / torch.hypot(alpha, sigma), torch.zeros_like(alpha), torch.ones_like(alpha), noise_level(alpha, sigma)


@_of_scales
def v(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """F = (alpha eps - sigma x0) / r,  r^2 = alpha^2 + sigma^2:  D = (alpha x / r - sigma F) / r.

    Salimans and Ho 2022, Appendix D, on the path scaled to r = 1.
    """
    r = torch.hypot(alpha, sigma)
    return 1 / r, alpha / r**2, -sigma / r, noise_level(alpha, sigma)


@_of_scales
def flow(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """F = eps - x0, the straight line's velocity:  D = (x - sigma F) / (alpha + sigma)  (Liu et al. 2023, Eq. 1)."""
    return 1 / torch.hypot(alpha, sigma), 1 / (alpha + sigma), -sigma / (alpha + sigma), noise_level(alpha, sigma)


@dataclass(frozen=True)
class EDM:
    """F of unit variance, for data of standard deviation sigma_data (Karras et al. 2022, Table 1, at x / alpha)."""

    sigma_data: float = 0.5

    def __call__(self, alpha: Scale, sigma: Scale) -> Preconditioning:
        alpha, sigma = as_tensor(alpha), as_tensor(sigma)
        total = torch.hypot(alpha * self.sigma_data, sigma)
        skip = alpha * self.sigma_data**2 / total**2
        return 1 / total, skip, sigma * self.sigma_data / total, noise_level(alpha, sigma)


def edm(sigma_data: float = 0.5) -> Precondition:
    """EDM's parameterisation, for data of standard deviation sigma_data."""
    return EDM(sigma_data)


PREDICTS: dict[str, Precondition] = {
    "score": score,
    "scaled_score": scaled_score,
    "eps": eps,
    "x0": x0,
    "v": v,
    "flow": flow,
}


class Path(Protocol):
    """What `TimeConditioned` needs of an SDE."""

    def time(self, log_snr: Tensor | float) -> Tensor: ...

    def scales(self, t: Tensor | float) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class TimeConditioned:
    """A network whose inputs are x as one path scales it, and the noise level in the units of its paper.

        t = time of log-SNR,   x_t = s x,   s = hypot(alpha_t, sigma_t) / hypot(alpha, sigma),
        D = c_skip x_t + c_out F(x_t, scale u + shift)

    with u that time, or log(sigma / alpha). The coefficients are those of `predicts` at s alpha and s sigma. On its own
    path the network sees exactly what it was trained with. Along another path it sees the same log-SNR, with
    s = alpha_t / alpha. Beyond the ends of its path it sees x as large as at the end.

    Args:
        sde: the path that the network was trained on.
        predicts: one of `PREDICTS`.
        unit: "time" of the path, or "log_sigma".
        scale: of the noise level, 999 for the continuous paths of Song et al. 2021 (Appendix C), T for T timesteps.
        shift: added to it, -1 where timestep 0 is the first with noise, as on `DiscreteVPSDE`.
        integer_timesteps: round to the integer timestep with the nearest noise level (Karras et al. 2022, Appendix
            C.3.4). Otherwise timesteps may be fractions: networks take them well, and D is smooth in the noise level.

    Raises:
        ValueError: for an unknown `predicts` or `unit`.
    """

    sde: Path
    predicts: str = "eps"
    unit: str = "time"
    scale: float = 1.0
    shift: float = 0.0
    integer_timesteps: bool = False

    def __post_init__(self) -> None:
        if self.predicts not in PREDICTS:
            raise ValueError(f"expected predicts to be one of {', '.join(PREDICTS)}, got {self.predicts!r}")
        if self.unit not in ("time", "log_sigma"):
            raise ValueError(f"expected unit to be time or log_sigma, got {self.unit!r}")
        if self.integer_timesteps and self.unit != "time":
            raise ValueError("expected unit to be time for integer timesteps, got log_sigma")

    def __call__(self, alpha: Scale, sigma: Scale) -> Preconditioning:
        alpha, sigma = as_tensor(alpha), as_tensor(sigma)
        log_level = (sigma / alpha).log()
        t = self.sde.time(-2 * log_level)
        scale = torch.hypot(*self.sde.scales(t)) / torch.hypot(alpha, sigma)
        _, c_skip, c_out, _ = PREDICTS[self.predicts](scale * alpha, scale * sigma)
        c_noise = self.scale * (t if self.unit == "time" else log_level) + self.shift
        if self.integer_timesteps:
            c_noise = self._nearest(c_noise, log_level.exp())
        return scale, scale * c_skip, c_out, c_noise

    def _nearest(self, timestep: Tensor, level: Tensor) -> Tensor:
        """The integer below or above, the one at whose time sigma / alpha is nearer to this level."""
        distances = []
        for k in (timestep.floor(), timestep.ceil()):
            alpha, sigma = self.sde.scales((k - self.shift) / self.scale)
            distances.append((sigma / alpha - level).abs())
        return torch.where(distances[0] < distances[1], timestep.floor(), timestep.ceil())


Told = TimeConditioned  # its name until 0.1.0


def noise_level(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise level as networks take it, c_noise = log(sigma / alpha) / 4; shaped as the scales."""
    return (sigma / alpha).log() / 4
