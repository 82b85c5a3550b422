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
    """p(x0) = sum_k w_k N(m_k, C_k), so that p(x_t) = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I).

    A full covariance is kept as its eigenvectors Q_k and the standard deviations s_k along them. There the marginals
    of all noise levels have independent coordinates.

    Args:
        means: m_k, (K, *D).
        stds: s_k, (K,) or (K, *D), of independent coordinates.
        weights: w_k, (K,), positive; they are normalised.
        covariances: C_k in the place of stds, (K, d, d) for the d numbers of a sample in their order.

    Raises:
        ValueError: for shapes that do not match.
    """

    def __init__(
        self, means: Tensor, stds: Tensor | None, weights: Tensor, *, covariances: Tensor | None = None
    ) -> None:
        count, dims = len(means), means[0].numel()
        spread = stds if covariances is None else covariances
        allowed = ((count,), means.shape) if covariances is None else ((count, dims, dims),)
        if spread is None or spread.shape not in allowed or weights.shape != (count,):
            kind = "stds" if covariances is None else "covariances"
            shapes = " or ".join(str(tuple(shape)) for shape in allowed)
            raise ValueError(
                f"expected {kind} {shapes} and weights ({count},) for means {tuple(means.shape)}, got "
                f"{None if spread is None else tuple(spread.shape)} and {tuple(weights.shape)}"
            )
        self.means = means
        self.basis: Tensor | None = None
        if covariances is not None:
            variances, self.basis = torch.linalg.eigh(covariances)
            spread = variances.clamp(min=0).sqrt().reshape(means.shape)
        self.stds = spread.reshape(spread.shape + (1,) * (means.ndim - spread.ndim)).expand_as(means)
        self.weights = weights / weights.sum()

    def __call__(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[x0 | x] = sum_k r_k (m_k + alpha C_k V_k^-1 (x - alpha m_k)),  V_k = alpha^2 C_k + sigma^2 I; (B, *D)."""
        a, _ = _scales(x, alpha, sigma)
        means, variances, residual, responsibility = self._posterior(x, alpha, sigma)
        gain = a.unsqueeze(1) * self.stds.to(x).square() / variances
        return (responsibility * (means + self._from_basis(gain * residual))).sum(1)

    def score(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """Grad log p(x), shape (B, *D)."""
        _, variances, residual, responsibility = self._posterior(x, alpha, sigma)
        return -(responsibility * self._from_basis(residual / variances)).sum(1)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """E[eps | x] = -sigma score, shape (B, *D)."""
        return -_scales(x, alpha, sigma)[1] * self.score(x, alpha, sigma)

    def log_prob(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """Log p(x) of the path's marginal, in nats, shape (B,)."""
        return self._components(x, alpha, sigma)[3].logsumexp(1)

    def responsibilities(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """p(k | x) of each component, shape (B, K)."""
        return self._components(x, alpha, sigma)[3].softmax(1)

    def sample(self, shape: tuple[int, ...] | int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of x0, shape (n, *D)."""
        n = shape if isinstance(shape, int) else math.prod(shape)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (n, *self.means.shape[1:])
        eps = torch.randn(shape, generator=generator, dtype=self.means.dtype, device=self.means.device)
        eps = self.stds[component] * eps
        if self.basis is not None:
            eps = (self.basis[component] @ eps.reshape(n, -1, 1)).reshape(eps.shape)
        return self.means[component] + eps

    def posterior(self, matrix: Tensor, y: Tensor, std: float) -> tuple["GaussianMixture", Tensor]:
        """p(x0 | y) and log p(y) in nats, for  y = A x0 + std n,  n ~ N(0, I).

        With the singular values of  A C_k^(1/2) = U diag(s) V^T,  component k becomes

            C_k^(1/2) V diag(std^2 / (s^2 + std^2)) V^T C_k^(1/2)  about  m_k + C_k^(1/2) V diag(s / (s^2 + std^2)) r,

        where r = U^T (y - A m_k), and its weight is multiplied by  N(r; 0, diag(s^2 + std^2)).  There is no small
        difference of large numbers in it, so it holds to rounding for the least noise too.

        Args:
            matrix: A, (m, d), as `matrix()` of a linear measurement.
            y: m numbers.
            std: of the noise; 0 is allowed where A C_k A^T is regular for all k.

        Raises:
            ValueError: for sizes that do not match, or a y without a density.
        """
        count, dims = len(self.means), self.means[0].numel()
        if matrix.ndim != 2 or matrix.shape[1] != dims or y.numel() != len(matrix):
            raise ValueError(
                f"expected a matrix (m, {dims}) and m measured values, got {tuple(matrix.shape)} and {y.numel()}: "
                "make the matrix for the shape of the mixture"
            )
        means, a = self.means.reshape(count, dims, 1), matrix.to(self.means)
        identity = torch.eye(dims).to(means).expand(count, -1, -1)
        root = (identity if self.basis is None else self.basis) * self.stds.reshape(count, 1, dims)
        u, s, v_t = torch.linalg.svd(a @ root)
        s_rows, s_columns = (torch.zeros(count, n).to(s) for n in (len(a), dims))
        s_rows[:, : s.shape[1]], s_columns[:, : s.shape[1]] = s, s
        if std == 0 and bool((s_rows <= len(a) * torch.finfo(s.dtype).eps * s.amax(1, keepdim=True)).any()):
            raise ValueError("expected independent rows of the matrix without noise, got dependent ones: give std > 0")
        variances = s_rows.square() + std**2
        r = (u.mT @ (y.to(means).reshape(-1, 1) - a @ means)).squeeze(2)
        log_joint = self.weights.to(r).log() - (r.square() / variances + (2 * math.pi * variances).log()).sum(1) / 2
        axes = root @ v_t.mT
        shift = torch.zeros_like(s_columns)
        shift[:, : s.shape[1]] = (s_rows / variances * r)[:, : s.shape[1]]
        left = torch.where(s_columns > 0, std / (s_columns.square() + std**2).sqrt(), 1.0)
        basis, stds, _ = torch.linalg.svd(axes * left.unsqueeze(1))
        shape = self.means.shape
        posterior = GaussianMixture(
            (means + axes @ shift.unsqueeze(2)).reshape(shape), stds.reshape(shape), log_joint.softmax(0)
        )
        posterior.basis = basis
        return posterior, log_joint.logsumexp(0)

    def _components(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means m_k; variances and x - alpha m_k along Q_k, (B or 1, K, *D); the log joint density, (B, K)."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"expected x (B, {', '.join(map(str, self.means.shape[1:]))}), got {tuple(x.shape)}")
        a, s = (scale.unsqueeze(1) for scale in _scales(x, alpha, sigma))
        means, stds = self.means.to(x).unsqueeze(0), self.stds.to(x).unsqueeze(0)
        variances = (a * stds).square() + s.square()
        residual = x.unsqueeze(1) - a * means
        if self.basis is not None:
            residual = _rows(residual, self.basis)
        log_normal = -(residual.square() / variances + (2 * math.pi * variances).log()) / 2
        return means, variances, residual, self.weights.to(x).log() + log_normal.flatten(2).sum(2)

    def _posterior(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        means, variances, residual, log_joint = self._components(x, alpha, sigma)
        responsibility = log_joint.softmax(1)
        return means, variances, residual, responsibility.reshape(*responsibility.shape, *(1,) * (x.ndim - 1))

    def _from_basis(self, coordinates: Tensor) -> Tensor:
        """Coordinates along Q_k (B, K, *D) as those of x0."""
        return coordinates if self.basis is None else _rows(coordinates, self.basis.mT)


def _rows(x: Tensor, basis: Tensor) -> Tensor:
    """x^T Q_k, (B, K, *D). A product for each sample, so that none depends on how many there are."""
    return (x.flatten(2).unsqueeze(2) @ basis.to(x)).reshape(x.shape)


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
