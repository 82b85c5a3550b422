"""Moment matching posterior sampling."""

from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.models.guidance.inverse_problem import Guided
from scorefield.models.measurements.base import Measurement
from scorefield.sde_lib.broadcast import Scale, expand, precise
from scorefield.sde_lib.denoiser import DenoiserLike


class MMPS(Guided):
    """p(y | x) = N(y; A D(x), noise_std^2 I + A V A^T),  V = Cov[x0 | x] = (sigma^2 / alpha) dD/dx.

    Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization". The covariance
    is that of the exact denoiser. It is held fixed where the gradient is taken. It is exact for Gaussian
    data of any covariance.

    The linear system of each sample is solved by GMRES (Saad and Schultz 1986), as dD/dx of a network is not quite
    symmetric. Each iteration is a vector-Jacobian product. Where `iterations` reach the number m of measured values,
    the matrix is built from m products and the solution is exact; `Twisted` needs that. Nonlinear measurements are
    linearised at D(x).

    Args:
        denoiser: E[x0 | x] of the prior, differentiable.
        measurement: A.
        noise_std: of the measurement; 0 is allowed where A V A^T is regular.
        iterations: the most vector-Jacobian products, 1 or more.
        tolerance: iterations of a sample stop where its residual, relative to the first, is below it.

    Raises:
        ValueError: for less than one iteration.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise_std: float,
        iterations: int = 5,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__(denoiser, measurement, noise_std)
        if iterations < 1:
            raise ValueError(f"expected 1 iteration or more, got {iterations}: use 5, or as many as measured values")
        self.iterations, self.tolerance = iterations, tolerance

    def gradient(self, x: Tensor, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor, graph: bool) -> Tensor:
        """J^T A^T (noise_std^2 I + A V A^T)^-1 (y - A D), (B, *D)."""
        product, residual, pulled = self._system(x, x0, alpha, sigma, y, graph)
        if self.iterations >= residual.shape[1]:
            weights = _solution(_matrix(product, residual), residual)
        else:
            weights = _gmres(product, residual, self.iterations, self.tolerance)
        return _combined(weights, pulled, x)

    def potential_and_gradient(
        self, x: Tensor, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor, graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Log p(y | x) in nats, (B,), with its determinant, and the gradient; for `Twisted`.

        Raises:
            ValueError: for fewer iterations than measured values, which leave the determinant unknown.
        """
        product, residual, pulled = self._system(x, x0, alpha, sigma, y, graph)
        if self.iterations < residual.shape[1]:
            raise ValueError(
                f"expected as many iterations of MMPS for twisted as the {residual.shape[1]} measured values, got "
                f"{self.iterations}: raise them, or use pigdm"
            )
        matrix = _matrix(product, residual)
        weights = _solution(matrix, residual)
        square: Tensor = (residual * weights).sum(1)
        log_determinant: Tensor = torch.linalg.slogdet(matrix)[1].to(square)
        return -(square + log_determinant) / 2, _combined(weights, pulled, x)

    def _system(
        self, x: Tensor, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor, graph: bool
    ) -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
        """The matrix as a product (B, m) -> (B, m), the residual (B, m), and J^T A^T of what will be multiplied."""
        predicted = self.measurement(x0)
        residual = (y - predicted).flatten(1)
        gamma = expand(precise(sigma).square() / precise(alpha), residual)
        pulled: list[Tensor] = []

        def product(direction: Tensor) -> Tensor:
            back = self.pull(predicted, x, direction.reshape(y.shape), graph)
            pulled.append(back)
            return self.noise_std**2 * direction + gamma * self.push(x0, back, graph).flatten(1)

        return product, residual if graph else residual.detach(), pulled


def _combined(weights: Tensor, pulled: list[Tensor], x: Tensor) -> Tensor:
    """The sum of the vectors (B, *D) by their weights (B, n)."""
    answer = torch.zeros_like(x)
    for weight, back in zip(weights.unbind(1), pulled, strict=True):
        answer = answer + weight.reshape(-1, *(1,) * (x.ndim - 1)) * back
    return answer


def _matrix(product: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """The matrix itself, (B, m, m), in float64."""
    identity = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    return precise(torch.stack([product(row.expand_as(b)) for row in identity], 2))


def _solution(matrix: Tensor, b: Tensor) -> Tensor:
    """The solution (B, m) of  matrix w = b.

    Raises:
        ValueError: for a matrix that is singular.
    """
    solution: Tensor
    solution, info = torch.linalg.solve_ex(matrix, precise(b))
    if bool((info != 0).any()):
        raise ValueError(
            "expected measured values that noise or x0 can move independently for MMPS, got a singular covariance: "
            "give a noise_std above 0"
        )
    return solution.to(b.dtype)


def _gmres(product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float) -> Tensor:
    """Coefficients (B, n) of the directions that were asked for, which leave the least |b - product(w)|.

    A sample that has arrived asks for directions of zero, so that none depends on the others of its batch.
    """
    size = _norm(b)
    direction, going = b / torch.where(size > 0, size, 1.0), size > 0
    directions: list[Tensor] = []
    images = [torch.zeros_like(b)] * steps
    for step in range(steps):
        directions.append(direction)
        images[step] = product(direction)
        coefficients = _least_squares(torch.stack(images, 1), b)
        rest = b - sum(coefficients[:, i : i + 1] * image for i, image in enumerate(images))
        following = images[step]
        for _ in range(2):  # the second time takes away what the first has rounded
            for known in directions:
                following = following - (following * known).sum(1, keepdim=True) * known
        length = _norm(following)
        going = going & (_norm(rest) > tolerance * size) & (length > 1e-6 * _norm(images[step]))
        if not bool(going.any()):
            break
        direction = torch.where(going, following / torch.where(going, length, 1.0), 0.0)
    return coefficients[:, : len(directions)]


def _least_squares(images: Tensor, b: Tensor) -> Tensor:
    """The coefficients (B, n) of images (B, n, m) that come closest to b (B, m), and 0 for images of zero."""
    dtype, images, b = b.dtype, precise(images), precise(b)
    gram = (images.unsqueeze(1) * images.unsqueeze(2)).sum(3)
    empty = (gram.diagonal(dim1=1, dim2=2) == 0).to(gram)
    coefficients: Tensor = torch.linalg.solve_ex(gram + torch.diag_embed(empty), (images * b.unsqueeze(1)).sum(2))[0]
    return coefficients.to(dtype)


def _norm(v: Tensor) -> Tensor:
    """Of each sample, (B, 1); its derivative at 0 is 0."""
    square = v.square().sum(1, keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
