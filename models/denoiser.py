"""The one wrapper that turns a network into a denoiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.levels import Levels, Parameterisation, PixelPosterior
from scorefield.models.precondition import noise_level
from scorefield.sde_lib.broadcast import Scale, expand, like, precise


class Denoiser(nn.Module):
    """D(x, alpha, sigma) = c_skip x + c_out F(c_in x, c_noise), an estimate of E[x0 | x = alpha x0 + sigma eps].

    Karras et al. 2022, Eq. 7. Scales are () or (B,), or (B, *D) on a path with a noise level for each dimension. The
    network is called as `net(x, c_noise, **cond)` with c_noise (B,), the mean over dimensions, and conditioning passes
    through to it. It answers in the shape of x, and drops variances that it has learned.

    Args:
        net: the network F, or any function called so: a module's weights become this one's.
        precondition: what F predicts: `score`, `eps`, `x0`, `v`, `flow` or `edm(...)` of `models.precondition`,
            or any function `(alpha, sigma) -> (c_in, c_skip, c_out, c_noise)`; or `Levels` of `models.levels`.
        label_required: F was always given a class in training. Without `label` its output then means nothing.

    Raises:
        ValueError: when it is called without the `label` that is required.
    """

    def __init__(
        self, net: Callable[..., Tensor], precondition: Parameterisation, *, label_required: bool = False
    ) -> None:
        super().__init__()
        self.net = net
        self.precondition = precondition
        self.label_required = label_required

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[x0 | x], shape (B, *D)."""
        alpha, sigma = precise(alpha), precise(sigma)
        if isinstance(self.precondition, Levels):
            pixel, network = self._beyond_pixels(self.precondition, x, alpha, sigma, **cond)
            return pixel.mean + expand(sigma / alpha, x) * pixel.spread * network
        c_in, c_skip, c_out, c_noise = self.precondition(alpha, sigma)
        network = self._network(x, expand(c_in, x) * x, c_noise, **cond)
        return expand(c_skip, x) * x + expand(c_out, x) * network

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[eps | x] = (x - alpha D) / sigma, shape (B, *D), without that difference: its coefficients are float64."""
        alpha, sigma = precise(alpha), precise(sigma)
        if isinstance(self.precondition, Levels):
            pixel, network = self._beyond_pixels(self.precondition, x, alpha, sigma, **cond)
            return pixel.eps - pixel.spread * network
        c_in, c_skip, c_out, c_noise = self.precondition(alpha, sigma)
        network = self._network(x, expand(c_in, x) * x, c_noise, **cond)
        return expand((1 - alpha * c_skip) / sigma, x) * x - expand(alpha * c_out / sigma, x) * network

    def _beyond_pixels(
        self, levels: Levels, x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[PixelPosterior, Tensor]:
        pixel = levels(x, alpha, sigma)
        seen = torch.cat([expand(1 / torch.hypot(alpha, sigma), x) * x, pixel.mean, pixel.spread], 1)
        return pixel, self._network(x, seen, noise_level(alpha, sigma), **cond)

    def _network(self, x: Tensor, seen: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        """F of what it sees, in the shape of x."""
        if self.label_required and cond.get("label") is None:
            raise ValueError(
                "expected a label, because this network was always given one in training, got none: "
                'pass cond={"label": label}, a class for each sample'
            )
        # In half precision timesteps would be rounded to the nearest half, or eight.
        level = c_noise.to(x.device, torch.promote_types(x.dtype, torch.float32))
        level = level.flatten(1).mean(1) if level.ndim > 1 else level.expand(x.shape[0])
        return like(self.net(seen, level, **cond), x, "the network").to(x.dtype)
