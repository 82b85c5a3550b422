"""A denoiser with a measurement, and the base of its posterior denoisers."""

import abc
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from scorefield.models.guidance.posterior_variance import PosteriorVariance
from scorefield.models.measurements.base import Linear, Measurement
from scorefield.sde_lib.broadcast import Scale, expand, precise
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise, predict_x0
from scorefield.sde_lib.inverse_problem import nearest_consistent
from scorefield.sde_lib.twist import Twist


class InverseProblem(nn.Module):
    """A prior's denoiser with a measurement of x0:  y = A(x0) + noise_std n,  n ~ N(0, I).

    It is called with `y (B, *M)` beside the prior's own conditioning, as  D(x, alpha, sigma, y=y, label=label).
    This one answers as the prior does. Solvers with a run of their own (`RePaint`, `DAPS`, `SplitGibbs`, `DDRM`) take
    it. Methods that guide a denoiser are its subclasses.

    Args:
        denoiser: E[x0 | x] of the prior.
        measurement: A.
        noise_std: standard deviation of the measurement's noise, in the units of y.

    Raises:
        ValueError: for a noise level below zero, or of 0 or a measurement that the method cannot take.
    """

    needs_linear = False
    needs_noise = False

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement, noise_std: float) -> None:
        super().__init__()
        if not (noise_std >= 0 and math.isfinite(noise_std)):
            raise ValueError(f"expected a noise_std of 0 or more, got {noise_std}: give that of the measurement")
        if self.needs_noise and noise_std == 0:
            raise ValueError(
                f"expected a noise_std above 0 for {type(self).__name__}, which divides by it, got 0: give a small "
                "one, as 0.01, or use pigdm, mmps or ddnm"
            )
        if self.needs_linear and not isinstance(measurement, Linear):
            raise ValueError(
                f"expected a linear measurement with an adjoint for {type(self).__name__}, got "
                f"{type(measurement).__name__}: use dps, daps or twisted"
            )
        self.bounds: tuple[float, float] | None = None
        self.prior = denoiser
        self.measurement, self.noise_std = measurement, float(noise_std)

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x] of the prior, (B, *D)."""
        return predict_x0(self.prior, x, alpha, sigma, **cond)

    def meet(self, x0: Tensor, y: Tensor) -> Tensor:
        """The nearest x0 that a measurement without noise allows,  x0 + A^T (A A^T)^-1 (y - A x0),  (B, *D).

        Linear measurements alone, and noise_std of 0; all else is left as it is. Where `bounds` are set, as the range
        of images, x0 is first kept within them: at high noise a network's derivative is wrong by far more than its
        answer.
        """
        if self.bounds is not None:
            x0 = x0.clamp(*self.bounds)
        if self.noise_std > 0 or not isinstance(self.measurement, Linear):
            return x0
        return nearest_consistent(self.measurement, x0, y)

    def log_likelihood(self, x0: Tensor, y: Tensor) -> Tensor:
        """Log N(y; A(x0), noise_std^2) in nats, (B,).

        Raises:
            ValueError: for measurements without noise, which have no density given x0.
        """
        if self.noise_std == 0:
            raise ValueError("expected a noise_std above 0 for a likelihood, got 0: give a small one, as 0.01")
        square: Tensor = ((y - self.measurement(x0)) / self.noise_std).square().flatten(1).sum(1)
        return -square / 2 - y[0].numel() * (math.log(self.noise_std) + math.log(2 * math.pi) / 2)


class Weighing(InverseProblem):
    """A method that `Twisted` takes: it guides particles, and weighs them by a p(y | x) of its own."""

    @abc.abstractmethod
    def twist(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Twist:
        """The proposal and the potential of `Twisted`, at a noise level."""

    def finish(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """The prior's D(x), and log p(y | x0 = D(x)) in nats; without noise D_y(x), and the method's log p(y | x)."""
        if self.noise_std == 0:
            last = self.twist(x, alpha, sigma, y=y, **cond)
            return last.guided, last.log_potential
        x0 = predict_x0(self.prior, x, alpha, sigma, **cond)
        return x0, self.log_likelihood(x0, y)


class Guided(Weighing):
    """D_y(x) = D(x) + (sigma^2 / alpha) grad log p(y | x),  for an approximation of p(y | x).

    A subclass defines `log_potential`, or `gradient` where that is no gradient of it. Gradients with respect to x flow
    through the answer where x requires them. D_y of a linear measurement without noise is the nearest that it allows.
    """

    def log_potential(self, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor) -> Tensor:
        """The method's log p(y | x) by x0 = D(x), up to what all samples of a noise level share, in nats, (B,)."""
        raise ValueError(
            f"expected a method with a density of y given x, got {type(self).__name__}: use jacobian_free, pigdm or dps"
        )

    def gradient(self, x: Tensor, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor, graph: bool) -> Tensor:
        """Grad_x log p(y | x), (B, *D). x0 = D(x) has its graph.

        Args:
            x: the state.
            x0: the denoiser's answer.
            alpha: of the path.
            sigma: of the path.
            y: the measurement.
            graph: whether the answer is to be differentiated.
        """
        return self.potential_and_gradient(x, x0, alpha, sigma, y, graph)[1]

    def pull(self, predicted: Tensor, x: Tensor, weights: Tensor, graph: bool) -> Tensor:
        """J^T A^T of weights (B, *M), where predicted = A(D(x)), (B, *D)."""
        back: Tensor = torch.autograd.grad(predicted, x, weights, retain_graph=True, create_graph=graph)[0]
        return back

    def push(self, x0: Tensor, direction: Tensor, graph: bool) -> Tensor:
        """The derivative of A at x0 in a direction (B, *D), (B, *M)."""
        if self.measurement.linear:
            pushed: Tensor = self.measurement(direction)
        else:
            pushed = jvp(self.measurement, (x0 if graph else x0.detach(),), (direction,))[1]
        return pushed

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x, y] as the method has it, (B, *D)."""
        x0, gradient = self._guided(predict_x0, x, alpha, sigma, y, cond)
        return self.meet(x0 + expand(_shift(alpha, sigma), x) * gradient, y)

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Tensor:
        """E[eps | x, y] = eps - sigma grad log p(y | x), (B, *D)."""
        eps, gradient = self._guided(predict_noise, x, alpha, sigma, y, cond)
        eps = eps - expand(sigma, x) * gradient
        if self.noise_std > 0 and self.bounds is None:
            return eps
        a, s = expand(alpha, x), expand(sigma, x)
        return (x - a * self.meet((x - s * eps) / a, y)) / s

    def twist(self, x: Tensor, alpha: Scale, sigma: Scale, *, y: Tensor, **cond: Any) -> Twist:
        """The proposal and the potential of `Twisted`, by one evaluation and one vector-Jacobian product."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = predict_x0(self.prior, x, alpha, sigma, **cond)
            potential, gradient = self.potential_and_gradient(x, x0, alpha, sigma, y, False)
        x0 = x0.detach()
        guided = self.meet(x0 + expand(_shift(alpha, sigma), x) * gradient, y)
        return Twist(guided.detach(), ((1.0, x0),), potential.detach())

    def _guided(
        self, predict: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, y: Tensor, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The prior's D(x) or eps(x), as `predict` asks, and the gradient of log p(y | x)."""
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            start = x if graph else x.detach().requires_grad_()
            answer = predict(self.prior, start, alpha, sigma, **cond)
            x0 = answer
            if predict is predict_noise:  # which keeps its digits at low noise
                x0 = (start - expand(sigma, x) * answer) / expand(alpha, x)
            gradient = self.gradient(start, x0, alpha, sigma, y, graph)
        return (answer, gradient) if graph else (answer.detach(), gradient.detach())

    def potential_and_gradient(
        self, x: Tensor, x0: Tensor, alpha: Scale, sigma: Scale, y: Tensor, graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Both for `twist`, (B,) and (B, *D); arguments as those of `gradient`."""
        potential = self.log_potential(x0, alpha, sigma, y)
        return potential, torch.autograd.grad(potential.sum(), x, create_graph=graph)[0]


def gaussian_potential(
    measurement: Linear, residual: Tensor, noise_std: float, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Log N(residual; 0, S) in nats up to its normaliser, (B,), and S^-1 residual,  S = noise_std^2 I + variance A A^T.

    All samples of a noise level share the normaliser.
    """
    solved = measurement.solve(residual, noise_std**2, variance)
    return -(residual * solved).flatten(1).sum(1) / 2, solved


def _shift(alpha: Scale, sigma: Scale) -> Tensor:
    """sigma^2 / alpha, by which a gradient of log p(y | x) moves D."""
    return precise(sigma).square() / precise(alpha)


def ratio(alpha: Scale, sigma: Scale) -> Tensor:
    """rho^2 = sigma^2 / alpha^2, the variance of the noise on x / alpha."""
    return (precise(sigma) / precise(alpha)).square()


def isotropic_variance(alpha: Scale, sigma: Scale, data_std: float | PosteriorVariance) -> Tensor:
    """r^2 = s^2 rho^2 / (s^2 + rho^2), the variance of x0 given x where the data are N(m, s^2 I), or a measured one."""
    if isinstance(data_std, PosteriorVariance):
        return data_std(alpha, sigma)
    rho2 = ratio(alpha, sigma)
    return data_std**2 * rho2 / (data_std**2 + rho2)


def check_data_std(data_std: float | PosteriorVariance) -> None:
    """Refuses what is no standard deviation.

    Raises:
        ValueError: for any number that is not above 0.
    """
    if not isinstance(data_std, PosteriorVariance) and not (data_std > 0 and math.isfinite(data_std)):
        raise ValueError(f"expected a data_std above 0, got {data_std}: give the standard deviation of the data")
