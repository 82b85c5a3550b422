"""Guidance by a classifier of noisy images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.sde_lib.broadcast import Scale, expand, precise
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise, predict_x0
from scorefield.sde_lib.twist import Twist

Classifier = Callable[[Tensor, Scale, Scale], Tensor]  # x (B, *D), alpha, sigma -> logits (B, K)


class ClassifierGuidance(nn.Module):
    """D = D(x) + scale (sigma^2 / alpha) grad_x log p(label | x),  of a classifier that knows the noise level.

    Dhariwal and Nichol 2021, Algorithm 2. With the exact classifier and a scale of 1 it is the denoiser of the class. A
    denoiser that was trained without classes will do. Gradients flow through the answer where x requires them. `label
    (B,)` is the class of each sample.

    Args:
        denoiser: E[x0 | x].
        classifier: logits (B, K) of the classes given x, alpha and sigma.
        scale: of the gradient; 0 is the denoiser alone.
        conditional: whether the denoiser takes `label` too.
    """

    def __init__(
        self, denoiser: DenoiserLike, classifier: Classifier, scale: float = 1.0, *, conditional: bool = False
    ) -> None:
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier
        self.scale, self.conditional = scale, conditional

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, *, label: Tensor, **cond: Any) -> Tensor:
        """The guided E[x0 | x], (B, *D)."""
        x0 = predict_x0(self.denoiser, x, alpha, sigma, **self._given(label, cond))
        shift = precise(sigma).square() / precise(alpha)
        return x0 + self.scale * expand(shift, x) * self._log_probability(x, alpha, sigma, label)[1]

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, *, label: Tensor, **cond: Any) -> Tensor:
        """The guided E[eps | x] = eps - scale sigma grad_x log p(label | x), (B, *D)."""
        eps = predict_noise(self.denoiser, x, alpha, sigma, **self._given(label, cond))
        return eps - self.scale * expand(sigma, x) * self._log_probability(x, alpha, sigma, label)[1]

    def twist(self, x: Tensor, alpha: Scale, sigma: Scale, *, label: Tensor, **cond: Any) -> Twist:
        """The proposal and target of `Twisted` for the law  p(x) p(label | x)^scale."""
        x0 = predict_x0(self.denoiser, x, alpha, sigma, **self._given(label, cond))
        log_p, gradient = self._log_probability(x.detach(), alpha, sigma, label)
        shift = precise(sigma).square() / precise(alpha)
        return Twist(x0 + self.scale * expand(shift, x) * gradient, ((1.0, x0),), self.scale * log_p)

    def finish(self, x: Tensor, alpha: Scale, sigma: Scale, *, label: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """The denoiser's own E[x0 | x], and scale log p(label | x) in nats."""
        last = self.twist(x, alpha, sigma, label=label, **cond)
        return last.factors[0][1], last.log_potential

    def _given(self, label: Tensor, cond: dict[str, Any]) -> dict[str, Any]:
        return {**cond, "label": label} if self.conditional else cond

    def _log_probability(self, x: Tensor, alpha: Scale, sigma: Scale, label: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(label | x) in nats, (B,), and its gradient, (B, *D)."""
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            start = x if graph else x.detach().requires_grad_()
            log_p = self.classifier(start, alpha, sigma).log_softmax(1)[torch.arange(len(x), device=x.device), label]
            gradient = torch.autograd.grad(log_p.sum(), start, create_graph=graph)[0]
        return (log_p, gradient) if graph else (log_p.detach(), gradient.detach())
