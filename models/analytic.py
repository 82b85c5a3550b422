"""Denoisers with exact answers: the judges of every path, solver and likelihood.

Each is called as any denoiser, `(x, alpha, sigma) -> E[x0 | x = alpha x0 + sigma eps]`, in any dimension
and dtype, and knows its marginal's density, score and samples besides.
"""

import math

import torch
from torch import Tensor

from scorefield.sde_lib.broadcast import Scale, expand, precise


def _scales(x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
    return expand(alpha, x), expand(sigma, x)


class GaussianMixture:
    """p(x0) = sum_k w_k N(m_k, s_k^2), so that p(x_t) = sum_k w_k N(alpha m_k, alpha^2 s_k^2 + sigma^2).

    Args:
        means: m_k, (K, *D).
        stds: s_k, (K,) or (K, *D).
        weights: w_k, (K,), positive; they are normalised.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor) -> None:
        if stds.shape not in (means.shape[:1], means.shape) or weights.shape != means.shape[:1]:
            raise ValueError(
                f"expected stds ({len(means)},) or {tuple(means.shape)} and weights ({len(means)},) for means "
                f"{tuple(means.shape)}, got {tuple(stds.shape)} and {tuple(weights.shape)}"
            )
        self.means = means
        self.stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim)).expand_as(means)
        self.weights = weights / weights.sum()

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[x0 | x] = sum_k r_k (m_k + alpha s_k^2 (x - alpha m_k) / v_k),  v_k = alpha^2 s_k^2 + sigma^2; (B, *D)."""
        a, _ = _scales(x, alpha, sigma)
        means, variances, residual, responsibility = self._posterior(x, alpha, sigma)
        gain = a.unsqueeze(1) * self.stds.to(x).square() / variances
        return (responsibility * (means + gain * residual)).sum(1)

    def score(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """Grad log p(x), shape (B, *D)."""
        _, variances, residual, responsibility = self._posterior(x, alpha, sigma)
        return -(responsibility * residual / variances).sum(1)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[eps | x] = -sigma score, shape (B, *D)."""
        return -_scales(x, alpha, sigma)[1] * self.score(x, alpha, sigma)

    def log_prob(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """Log p(x) of the path's marginal, in nats, shape (B,)."""
        return self._components(x, alpha, sigma)[3].logsumexp(1)

    def sample(self, shape: tuple[int, ...] | int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of x0, shape (n, *D)."""
        n = shape if isinstance(shape, int) else math.prod(shape)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (n, *self.means.shape[1:])
        eps = torch.randn(shape, generator=generator, dtype=self.means.dtype, device=self.means.device)
        return self.means[component] + self.stds[component] * eps

    def _components(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means m_k, variances v_k, residuals x - alpha m_k (B or 1, K, *D); log w_k N(x; alpha m_k, v_k) (B, K)."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"expected x (B, {', '.join(map(str, self.means.shape[1:]))}), got {tuple(x.shape)}")
        a, s = (scale.unsqueeze(1) for scale in _scales(x, alpha, sigma))
        means, stds = self.means.to(x).unsqueeze(0), self.stds.to(x).unsqueeze(0)
        variances = (a * stds).square() + s.square()
        residual = x.unsqueeze(1) - a * means
        log_normal = -(residual.square() / variances + (2 * math.pi * variances).log()) / 2
        return means, variances, residual, self.weights.to(x).log() + log_normal.flatten(2).sum(2)

    def _posterior(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        means, variances, residual, log_joint = self._components(x, alpha, sigma)
        responsibility = log_joint.softmax(1)
        return means, variances, residual, responsibility.reshape(*responsibility.shape, *(1,) * (x.ndim - 1))


def Gaussian(mean: Tensor, std: Tensor) -> GaussianMixture:  # noqa: N802 - a mixture of one, named as a class
    """N(mean, std^2) with mean (*D) and std () or (*D), as a mixture of one."""
    return GaussianMixture(mean.unsqueeze(0), std.expand_as(mean).unsqueeze(0), torch.ones(1, dtype=mean.dtype))


class Empirical:
    """The exact denoiser of a finite data set, the minimiser of the denoising loss on it:

        D(x) = sum_i softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)) x_i     (Karras et al. 2022, Eq. 57)

    Args:
        data: x_i, (N, *D).
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[x0 | x], shape (B, *D)."""
        data = self.data.to(precise(x)).flatten(1)
        return (self._log_joint(x, alpha, sigma).softmax(1) @ data).reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """Log of the mixture of N(alpha x_i, sigma^2), in nats, shape (B,)."""
        dims = x[0].numel()
        _, s = _scales(precise(x), alpha, sigma)
        constant = dims * (s.flatten().log() + math.log(2 * math.pi) / 2) + math.log(len(self.data))
        return (self._log_joint(x, alpha, sigma).logsumexp(1) - constant).to(x.dtype)

    def _log_joint(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        x = precise(x)
        a, s = (scale.reshape(-1, 1) for scale in _scales(x, alpha, sigma))
        points, data = x.flatten(1), self.data.to(x).flatten(1)
        squared = points.square().sum(1, keepdim=True) - 2 * a * points @ data.T + a**2 * data.square().sum(1)
        return -squared / (2 * s**2)
