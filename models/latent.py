"""Latent diffusion: a denoiser in the coordinates of an autoencoder (Rombach et al. 2022, Section 3)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import predict_noise


class Autoencoder(Protocol):
    """What `Latent` needs of an autoencoder."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Latent(nn.Module):
    """D(z, alpha, sigma), where  z = scale (E(images) - shift)  and  images = G(z / scale + shift).

    Solvers, encoding and likelihood see z alone; the scale brings it to about unit variance (Rombach et al. 2022,
    Appendix G).

    Args:
        denoiser: of z.
        autoencoder: a module with `encode`, the E, and `decode`, the G.
        scale, shift: one number, or one for each channel of z.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        autoencoder: nn.Module,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.denoiser, self.autoencoder = denoiser, autoencoder
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(value).reshape(-1, 1, 1))

    def forward(self, z: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[z0 | z], shape (B, c, h, w)."""
        output: Tensor = self.denoiser(z, alpha, sigma, **cond)
        return output

    def noise(self, z: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[eps | z], shape (B, c, h, w)."""
        return predict_noise(self.denoiser, z, alpha, sigma, **cond)

    def encode(self, images: Tensor) -> Tensor:
        """The latents z of images in -1 .. 1, (B, c, h, w)."""
        return self.scale.to(images.dtype) * (self._autoencoder.encode(images) - self.shift.to(images.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents z, (B, C, H, W)."""
        return self._autoencoder.decode(z / self.scale.to(z.dtype) + self.shift.to(z.dtype))

    @property
    def _autoencoder(self) -> Autoencoder:
        return self.autoencoder  # type: ignore[return-value]
