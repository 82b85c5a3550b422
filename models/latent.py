"""Latent diffusion: a denoiser in the coordinates of an autoencoder (Rombach et al. 2022, Section 3)."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scorefield.models.moments import Moments
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import predict_noise

OVERLAP = 0.25  # share of a tile that its neighbour has too
Channels = float | tuple[float, ...]  # one number, or one for each channel of the codes


class Autoencoder(Protocol):
    """What latent diffusion needs of an autoencoder: images in -1 .. 1 to codes z (B, c, h, w), and back."""

    def moments(self, images: Tensor) -> Moments: ...

    def decode(self, codes: Tensor) -> Tensor: ...


class ScaledAutoencoder(nn.Module):
    """An autoencoder whose codes are shifted and scaled, to about mean 0 and deviation 1 in each channel.

        z = scale (E(images) - shift),   images = G(z / scale + shift)

    Rombach et al. 2022, Appendix G, have one scale for all channels and no shift.

    Args:
        autoencoder: a module with `moments`, the E, and `decode`, the G.
        scale, shift: one number, or one for each channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, autoencoder: nn.Module, scale: Channels = 1.0, shift: Channels = 0.0) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1))

    def moments(self, images: Tensor) -> Moments:
        """q(z | images) in the scaled coordinates."""
        return self.scaled(self._autoencoder.moments(images))

    def scaled(self, moments: Moments) -> Moments:
        """The autoencoder's own moments in the scaled coordinates."""
        return moments.scaled(self.shift, self.scale)

    def encode(self, images: Tensor) -> Tensor:
        """The mean codes of images in -1 .. 1, (B, c, h, w)."""
        return self.moments(images).mean

    def decode(self, codes: Tensor) -> Tensor:
        """The images of codes, (B, C, H, W)."""
        return self._autoencoder.decode(codes / self.scale.to(codes) + self.shift.to(codes))

    @property
    def _autoencoder(self) -> Autoencoder:
        return self.autoencoder  # type: ignore[return-value]


class Latent(ScaledAutoencoder):
    """D(z, alpha, sigma) in the coordinates of a scaled autoencoder; solvers, encoding and likelihood see z alone.

    Args:
        denoiser: of z.
        autoencoder: see `ScaledAutoencoder`.
        scale, shift: see there.
    """

    def __init__(
        self, denoiser: nn.Module, autoencoder: nn.Module, scale: Channels = 1.0, shift: Channels = 0.0
    ) -> None:
        super().__init__(autoencoder, scale, shift)
        self.denoiser = denoiser

    def forward(self, z: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[z0 | z], shape (B, c, h, w)."""
        output: Tensor = self.denoiser(z, alpha, sigma, **cond)
        return output

    def noise(self, z: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[eps | z], shape (B, c, h, w)."""
        return predict_noise(self.denoiser, z, alpha, sigma, **cond)


@torch.no_grad()
def in_tiles(autoencoder: Autoencoder, codes: Tensor, tile: int) -> Tensor:
    """`decode` of codes (B, c, h, w) in square tiles, for images that do not fit into memory.

    A quarter of a tile is in its neighbour too, and they are mixed linearly there. A tile does not see the others, so
    its normalisations and attention differ a little from those of the whole image.

    Args:
        autoencoder: see `Autoencoder`.
        codes: to decode.
        tile: side of a tile, in codes.

    Raises:
        ValueError: for a tile of fewer than 2 codes.
    """
    if tile < 2:
        raise ValueError(f"expected tiles of at least 2 codes, got {tile}: take larger ones")
    height, width = codes.shape[-2:]
    if height <= tile and width <= tile:
        return autoencoder.decode(codes)
    tops, lefts = (_starts(length, tile) for length in (height, width))
    parts = {(y, x): autoencoder.decode(codes[..., y : y + tile, x : x + tile]) for y in tops for x in lefts}
    first = parts[0, 0]
    factor = first.shape[-1] // min(tile, width)
    weight = torch.outer(*(_ramps(length, round(factor * tile * OVERLAP)) for length in first.shape[-2:])).to(first)
    total = first.new_zeros(*first.shape[:2], factor * height, factor * width)
    weights = torch.zeros_like(total[0, 0])
    for (y, x), part in parts.items():
        rows = slice(factor * y, factor * y + part.shape[-2])
        columns = slice(factor * x, factor * x + part.shape[-1])
        total[..., rows, columns] += weight * part
        weights[rows, columns] += weight
    return total / weights


def _starts(length: int, tile: int) -> list[int]:
    step = max(1, tile - round(tile * OVERLAP))
    return [*range(0, max(length - tile, 0), step), max(length - tile, 0)]


def _ramps(length: int, ramp: int) -> Tensor:
    """Weights that rise over `ramp` entries and fall again at the other end, (length,)."""
    at = torch.arange(length)
    return (torch.minimum(at, at.flip(0)) + 1).clamp(max=ramp + 1) / (ramp + 1)
