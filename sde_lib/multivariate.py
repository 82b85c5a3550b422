"""A variance-preserving path with a noise level for each dimension, which depends on a latent code of the sample.

References:
    Sahoo et al. 2024, "Diffusion Models With Learned Adaptive Noise" (MuLAN), Section 3.
    Kingma et al. 2021, "Variational Diffusion Models", for the bound.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from scorefield.sde_lib.broadcast import as_tensor, like
from scorefield.sde_lib.k_hot import k_hot
from scorefield.sde_lib.learned import LINE, FrozenVP, quintic
from scorefield.sde_lib.paths import LogSNRVP
from scorefield.sde_lib.sde import Noise

FLATTEST = 1e-3  # c of the polynomial at least, so that it rises


class PerDimensionVP(LogSNRVP):
    """lambda(t) in R^D falls from `high` to `low` in each dimension:  alpha^2 = sigmoid(lambda),  t from 0 to 1.

        lambda(t) = high - (high - low) share(t),   share = f(t) / f(1),   f(t) = int_0^t (a s^2 + b s + c)^2 ds

    A thousandth of the share is a straight line, as in `LearnedVP`; with equal coefficients in all dimensions this is
    its polynomial (MuLAN, Section 3.2). Scales are (B, *D) for times () or (B,). There is no time of a log-SNR.

    Args:
        a, b, c: the coefficients, (B, *D) each.
        low: the log-SNR at t = 1.
        high: the log-SNR at t = 0.
    """

    per_dimension = True
    t_min = 0.0
    t_max = 1.0

    def __init__(self, a: Tensor, b: Tensor, c: Tensor, low: float = -5.0, high: float = 13.3) -> None:
        self.line = FrozenVP("linear", low, high)  # raises for ends in the wrong order
        self.coefficients = a, like(b, a, "the path"), like(c, a, "the path")

    def log_snr(self, t: Tensor | float) -> Tensor:
        t, (a, b, c) = self._at(t)
        risen = quintic(t, a, b, c) / quintic(torch.ones_like(t), a, b, c)
        return torch.lerp(t.new_tensor(self.line.high), t.new_tensor(self.line.low), LINE * t + (1 - LINE) * risen)

    def slope(self, t: Tensor | float) -> Tensor:
        """D lambda / dt, below zero, (B, *D)."""
        t, (a, b, c) = self._at(t)
        rise = (a * t**2 + b * t + c).square() / quintic(torch.ones_like(t), a, b, c)
        return (self.line.low - self.line.high) * (LINE + (1 - LINE) * rise)

    def drift(self, t: Tensor | float) -> Tensor:
        """f(t) = sigma^2 lambda' / 2, of  dx = f x dt + g dw."""
        return torch.sigmoid(-self.log_snr(t)) * self.slope(t) / 2

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t) = sigma sqrt(-lambda'), of  dx = f x dt + g dw."""
        return self.log_sigma(as_tensor(t)).exp() * (-self.slope(t)).sqrt()

    def time(self, log_snr: Tensor | float) -> Tensor:
        raise ValueError(
            "expected a path with one noise level for all dimensions to find the time of a log-SNR, got "
            "PerDimensionVP: use a grid in time, as grids.uniform(sde, 100)"
        )

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """As of any path: at t = 1 all dimensions have the same noise."""
        return self.line.prior_log_prob(z)

    def _at(self, t: Tensor | float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The time shaped to meet (B, *D), on the device of the coefficients, and these in its dtype."""
        t, shape = as_tensor(t), self.coefficients[0].shape
        if t.ndim > 1 or (t.ndim == 1 and len(t) not in (1, shape[0])):
            raise ValueError(
                f"expected a time of shape () or ({shape[0]},) on a path of {shape[0]} samples with a noise level for "
                f"each dimension, got {tuple(t.shape)}: pass one time, or one for each sample; grids are those in time"
            )
        t = t.to(self.coefficients[0].device)
        t = t.reshape(t.shape + (1,) * (len(shape) - t.ndim))
        return t, tuple(each.to(t.dtype) for each in self.coefficients)


class MultivariateVP(LogSNRVP, nn.Module):
    """Paths with a noise level for each dimension, one for each latent code:  `given(code)`.

    A network of the code gives the polynomials of `PerDimensionVP`. The code has m bits of which k are one. Before it
    is drawn all codes are equally likely; `infer` draws it from q(c | x0). Its bound is then a line integral over
    lambda in R^D, whose value depends on the way (MuLAN, Section 3.3). So it learns by the gradient of the bound, and
    the encoder by an estimate of it: see `training.objectives.mulan`.

    Without a code, log_snr is the straight line from `high` to `low`, whose ends all codes share. Grids of times and
    logs of training use it.

    Args:
        shape: of a sample, (*D).
        low: the log-SNR at t = 1.
        high: the log-SNR at t = 0.
        size: m, bits of the code.
        active: k, of which are one.
        width: of the polynomials' network.
        encoder: logits of q(c | x0), x0 (B, *D) -> (B, m); by default one linear layer.

    Raises:
        ValueError: for ends in the wrong order, or sizes that are none.
    """

    needs_code = True
    t_min = 0.0
    t_max = 1.0

    def __init__(
        self,
        shape: Sequence[int],
        low: float = -5.0,
        high: float = 13.3,
        size: int = 50,
        active: int = 15,
        width: int = 256,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not (1 <= active <= size and width >= 1):
            raise ValueError(
                f"expected 1 <= active <= size and a width of 1 or more, got active={active}, size={size} and "
                f"width={width}: MuLAN has 15 of 50"
            )
        FrozenVP("linear", low, high)  # raises for ends in the wrong order
        self.shape, self.low, self.high, self.size, self.active = tuple(shape), low, high, size, active
        dims = math.prod(self.shape)
        self.encoder = encoder or nn.Sequential(nn.Flatten(), nn.Linear(dims, size))
        self.polynomials = nn.Sequential(
            nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * dims)
        )
        for weight in self.polynomials[-1].parameters():  # every dimension starts with the line
            nn.init.zeros_(weight)

    def log_snr(self, t: Tensor | float) -> Tensor:
        """The straight line between the ends, shaped as t."""
        t = as_tensor(t)
        return torch.lerp(t.new_tensor(self.high), t.new_tensor(self.low), t)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The time of a log-SNR on the straight line."""
        return ((self.high - as_tensor(log_snr)) / (self.high - self.low)).clamp(0, 1)

    def given(self, code: Tensor) -> PerDimensionVP:
        """The path of each code (B, m).

        Raises:
            ValueError: for codes of another size.
        """
        if code.ndim != 2 or code.shape[1] != self.size:
            raise ValueError(
                f"expected a code (B, {self.size}), got {tuple(code.shape)}: draw one by sde.draw or sde.infer"
            )
        with torch.autocast(code.device.type, enabled=False):
            out = self.polynomials(code.to(next(self.polynomials.parameters())))
        a, b, c = (each.reshape(len(code), *self.shape) for each in out.chunk(3, 1))
        return PerDimensionVP(a, b, FLATTEST + softplus(c), self.low, self.high)

    def draw(self, count: int, uniform: Noise = torch.rand_like) -> Tensor:
        """Codes before any data is known, (count, m): all are equally likely."""
        logits = next(self.polynomials.parameters()).new_zeros(count, self.size)
        return k_hot(logits, self.active, uniform(logits))[0].to(logits.dtype)

    def infer(self, x0: Tensor, uniform: Tensor | Noise = torch.rand_like) -> tuple[Tensor, Tensor]:
        """A draw of q(c | x0), (B, m), with the gradient of its mean, and KL(q || all codes equally likely), (B,).

        Both are exact, so the bound is one. MuLAN draws by noise of summed gammas, which approximates this
        distribution, and its code takes the divergence of one bit of m.

        Args:
            x0: (B, *D).
            uniform: numbers on [0, 1), (B, m), or their source.
        """
        dtype = next(self.polynomials.parameters()).dtype
        logits = self.encoder(x0.to(dtype))
        logits = like(logits, logits.new_empty(len(x0), self.size), "the encoder of codes")
        drawn = uniform if isinstance(uniform, Tensor) else uniform(logits.detach())
        code, kl = k_hot(logits, self.active, drawn)
        return code.to(dtype), kl
