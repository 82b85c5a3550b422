"""The Gaussian path  x_t = alpha(t) x_0 + sigma(t) eps,  and all that its two functions imply.

References:
    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations".
    Kingma et al. 2021, "Variational Diffusion Models", for the log-SNR form.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.bisection import bisect
from scorefield.sde_lib.broadcast import Scale, as_tensor, expand, like
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise

Noise = Callable[[Tensor], Tensor]


def check_path(sde: "SDE") -> None:
    """Raises ValueError for what is no path, such as a denoiser in its place."""
    if not isinstance(sde, SDE):
        raise ValueError(
            f"expected a path such as VPSDE(), got {shown(sde)}: pass it second, after the denoiser, as "
            "solver(denoiser, sde, x, ts)"
        )
    if sde.needs_code:
        raise ValueError(
            f"expected a path, got {type(sde).__name__}, which is one for each code: pass sde.given(code), and "
            'cond={"code": code} for the denoiser'
        )


def check_one_level(sde: "SDE", who: str, instead: str) -> None:
    """Raises ValueError for a path with a noise level for each dimension, where `who` needs one for all."""
    if sde.per_dimension or sde.needs_code:
        raise ValueError(
            f"expected a path with one noise level for all dimensions for {who}, got {type(sde).__name__}: {instead}"
        )


class SDE(abc.ABC):
    """A path from data at `t_min` to noise at `t_max`, given by the logs of its two scales.

    A concrete path defines `log_alpha` and `log_sigma`; logs, so that float32 keeps its digits
    where alpha is near one and sigma near zero. Everything else is derived here. Times are tensors
    of shape () or (B,) (numbers are taken as float64), and results follow their dtype and device.
    """

    t_min: float
    t_max: float
    per_dimension: bool = False  # whether scales are (B, *D), a noise level for each dimension
    needs_code: bool = False  # whether it is a path for each latent code, as `MultivariateVP`

    @abc.abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Log alpha(t), the log of the signal's scale."""

    @abc.abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """Log sigma(t), the log of the noise's scale."""

    def scales(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)), each shaped as `t`."""
        t = as_tensor(t)
        return self.log_alpha(t).exp(), self.log_sigma(t).exp()

    def log_snr(self, t: Tensor | float) -> Tensor:
        """lambda(t) = 2 (log alpha - log sigma), which falls from data to noise (VDM, Eq. 3)."""
        t = as_tensor(t)
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def drift(self, t: Tensor | float) -> Tensor:
        """f(t) = d/dt log alpha(t), of  dx = f x dt + g dw."""
        return _derivative(self.log_alpha, as_tensor(t))

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t), of  dx = f x dt + g dw:  g^2 = -sigma^2 d lambda / dt  (VDM, Appendix B)."""
        t = as_tensor(t)
        return self.log_sigma(t).exp() * (-_derivative(self.log_snr, t)).sqrt()

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The time at which the log-SNR has this value; values beyond the path go to its ends.

        By bisection in float64. Paths with a closed form override it.
        """
        target = as_tensor(log_snr)
        return bisect(lambda t: self.log_snr(t) >= target, target, self.t_min, self.t_max).to(target.dtype)

    def perturb(self, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) eps, shape (B, *D)."""
        return noised(x0, *self.scales(t), eps)

    def score(self, denoiser: DenoiserLike, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """grad_x log p_t(x) = (alpha D - x) / sigma^2 = -eps / sigma  (Tweedie), shape (B, *D)."""
        alpha, sigma = self.scales(t)
        return -predict_noise(denoiser, x, alpha, sigma, **cond) / expand(sigma, x)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        noise: Noise = torch.randn_like,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw from the prior N(0, sigma(t_max)^2), shape (B, *D), from the given noise source."""
        blank = torch.empty(shape, dtype=dtype, device=device)
        return like(noise(blank), blank, "the noise") * expand(self.scales(self.t_max)[1], blank)

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log N(z; 0, sigma(t_max)^2) in nats, shape (B,)."""
        sigma = float(self.scales(self.t_max)[1])
        dims = math.prod(z.shape[1:])
        return -(z / sigma).square().flatten(1).sum(1) / 2 - dims * (math.log(sigma) + math.log(2 * math.pi) / 2)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(p(x_T | x0) || prior) = alpha_T^2 |x0|^2 / (2 sigma_T^2) in nats, shape (B,).

        Its mean over the data bounds the mismatch KL(p_T || prior) from above (VDM, Eq. 11, prior term).
        """
        alpha, sigma = self.scales(self.t_max)
        return (x0 * expand(alpha / sigma, x0)).square().flatten(1).sum(1) / 2


def noised(x0: Tensor, alpha: Scale, sigma: Scale, eps: Tensor) -> Tensor:
    """X = alpha x0 + sigma eps at given scales, shape (B, *D)."""
    return expand(alpha, x0) * x0 + expand(sigma, x0) * like(eps, x0, "the noise")


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d/dt of an elementwise function, with a graph where the function itself has one."""
    differentiable = torch.is_grad_enabled() and function(t).requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        t = t if t.requires_grad else t.clone().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # a constant, as VE's alpha is
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), t, create_graph=differentiable, materialize_grads=True)
    return slope
