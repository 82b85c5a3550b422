"""What an error costs at each noise level: functions `(sde, t) -> (B,)` that weigh |D - x0|^2.

The error in eps is the error in x0 times alpha / sigma, and the error in the score is that times alpha / sigma^2. So
every weighting of the literature is a function of the log-SNR lambda and its slope. By the identity of Vincent 2011
the minimiser is E[x0 | x_t] under any of them.
"""

from collections.abc import Callable

from torch import Tensor

from scorefield.sde_lib import SDE

Weighting = Callable[[SDE, Tensor], Tensor]


def simple(sde: SDE, t: Tensor) -> Tensor:
    """DDPM's |eps_hat - eps|^2:  alpha^2 / sigma^2 = e^lambda  (Ho et al. 2020, Eq. 14)."""
    return sde.log_snr(t).exp()


def ncsn(sde: SDE, t: Tensor) -> Tensor:
    """NCSN's  sigma^2 |s + eps / sigma|^2 / 2,  which is half of `simple`  (Song and Ermon 2019, Eq. 5-6)."""
    return simple(sde, t) / 2


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """g^2 |s - grad log p(x_t | x0)|^2:  g^2 alpha^2 / sigma^4.

    Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", Eq. 7.
    """
    alpha, sigma = sde.scales(t)
    return (sde.diffusion(t) * alpha / sigma**2).square()


def elbo(sde: SDE, t: Tensor) -> Tensor:
    """-(d SNR / dt) (t_max - t_min) / 2: over uniform times its mean is VDM's diffusion loss in nats/dim.

    Kingma et al. 2021, Eq. 17.
    """
    return likelihood(sde, t) * (sde.t_max - sde.t_min) / 2


def edm(sigma_data: float = 0.5) -> Weighting:
    """(s^2 + sigma_data^2) / (s sigma_data)^2  with  s = sigma / alpha  (Karras et al. 2022, Table 1)."""

    def weigh(sde: SDE, t: Tensor) -> Tensor:
        return sde.log_snr(t).exp() + sigma_data**-2

    return weigh


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma)  (Hang et al. 2023, Eq. 7)."""

    def weigh(sde: SDE, t: Tensor) -> Tensor:
        return sde.log_snr(t).exp().clamp(max=gamma)

    return weigh
