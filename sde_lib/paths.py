"""The paths of the literature, each two functions of time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from scorefield.sde_lib.broadcast import as_tensor
from scorefield.sde_lib.sde import SDE


def _integral_of_beta(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """int_0^t beta for a beta linear in time."""
    return t * (beta_min + t * (beta_max - beta_min) / 2)


def _time_of_integral(integral: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """The t at which that integral has this value: the positive root, in the form that never cancels."""
    return 2 * integral / (beta_min + torch.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral))


@dataclass(frozen=True)
class VPSDE(SDE):
    """Variance preserving, beta linear in time:  log alpha = -int_0^t beta / 2,  sigma^2 = 1 - alpha^2.

    Song et al. 2021, Eq. 11 and 32-33: the continuous limit of DDPM.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -_integral_of_beta(t, self.beta_min, self.beta_max) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(-torch.expm1(2 * self.log_alpha(t))) / 2

    def time(self, log_snr: Tensor | float) -> Tensor:
        integral = softplus(-as_tensor(log_snr))
        return _time_of_integral(integral, self.beta_min, self.beta_max).clamp(self.t_min, self.t_max)


@dataclass(frozen=True)
class SubVPSDE(SDE):
    """Sub-variance preserving: alpha as in VP, and sigma = 1 - alpha^2.

    Song et al. 2021, Eq. 12 and Appendix C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -_integral_of_beta(t, self.beta_min, self.beta_max) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def time(self, log_snr: Tensor | float) -> Tensor:
        lowest = float(self.log_snr(self.t_max))  # further down exp would overflow before the clamp
        integral = 2 * torch.asinh((-as_tensor(log_snr).clamp(min=lowest) / 2).exp() / 2)
        return _time_of_integral(integral, self.beta_min, self.beta_max).clamp(self.t_min, self.t_max)


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, sigma geometric in time from sigma_min to sigma_max.

    Song et al. 2021, Eq. 9 and 30-31: the continuous limit of NCSN.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)

    def time(self, log_snr: Tensor | float) -> Tensor:
        log_sigma = -as_tensor(log_snr) / 2
        t = (log_sigma - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp(self.t_min, self.t_max)


@dataclass(frozen=True)
class EDMSDE(SDE):
    """Time is the noise level: alpha = 1, sigma = t.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", Section 3.
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return t.log()

    def time(self, log_snr: Tensor | float) -> Tensor:
        return (-as_tensor(log_snr) / 2).exp().clamp(self.t_min, self.t_max)


class LogSNRVP(SDE):
    """alpha^2 = sigmoid(lambda) and sigma^2 = sigmoid(-lambda), for a log-SNR that is given."""

    def log_alpha(self, t: Tensor) -> Tensor:
        return logsigmoid(self.log_snr(t)) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return logsigmoid(-self.log_snr(t)) / 2

    def scales(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)), each shaped as the log-SNR."""
        return self.scales_at(self.log_snr(t))

    def scales_at(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR, each of its shape."""
        return (logsigmoid(log_snr) / 2).exp(), (logsigmoid(-log_snr) / 2).exp()


@dataclass(frozen=True)
class CosineSDE(LogSNRVP):
    """Variance preserving with  log-SNR = -2 log tan(pi t / 2) + shift:  alpha = cos(pi t / 2) at shift 0.

    Nichol and Dhariwal 2021, Eq. 17, with `t_min` in the place of their offset s; the shift is that of
    Hoogeboom et al. 2023, "simple diffusion", Eq. 8 (2 log(64 / size) for images of that size).
    """

    shift: float = 0.0
    t_min: float = 1e-3
    t_max: float = 0.999

    def log_snr(self, t: Tensor | float) -> Tensor:
        # sin(pi (1 - t) / 2) for the cosine: 1 - t is exact near the end of the path, pi / 2 - x is not.
        t = as_tensor(t)
        return 2 * (torch.sin((1 - t) * math.pi / 2).log() - torch.sin(t * math.pi / 2).log()) + self.shift

    def time(self, log_snr: Tensor | float) -> Tensor:
        tangent = ((self.shift - as_tensor(log_snr)) / 2).exp()
        return (torch.atan(tangent) * 2 / math.pi).clamp(self.t_min, self.t_max)


@dataclass(frozen=True)
class RectifiedSDE(SDE):
    """The straight line from data to noise:  alpha = 1 - t,  sigma = t.

    Liu et al. 2023, "Flow Straight and Fast"; Lipman et al. 2023, "Flow Matching", Eq. 20-23.
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return t.log()

    def time(self, log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid(-as_tensor(log_snr) / 2).clamp(self.t_min, self.t_max)
