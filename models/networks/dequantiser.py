"""The position of a pixel in its cell: a learned q(u | k), for variational dequantisation."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scorefield.models.layers.initial import zeroed
from scorefield.sde_lib.broadcast import precise


class Dequantiser(nn.Module):
    """A flow from uniform noise to u in (0, 1)^D, given the image (Ho et al. 2019, "Flow++", Section 3.1).

        e = logit(U),   z = f_n(.. f_1(a + e^s e)),   u = sigmoid(z),   f_i(z) = b_i + e^(s_i) z  on half of the pixels

    A convolutional network of the image gives a and s. It gives b_i and s_i together with the other half of z (Dinh
    et al. 2017, affine couplings on a checkerboard). All start at zero, so an untrained q is uniform.

    Args:
        channels: of the images; any height and width.
        width: channels of the network.
        couplings: number of f_i; their halves alternate. Without couplings the pixels are independent given the image.
        blocks: residual blocks of the image's network, two 3x3 convolutions each.
        bound: largest absolute value of each s.
    """

    def __init__(self, channels: int, width: int = 32, couplings: int = 4, blocks: int = 2, bound: float = 3.0) -> None:
        super().__init__()
        if min(channels, width) < 1 or min(couplings, blocks) < 0 or not bound > 0:
            raise ValueError(
                "expected channels and width of at least 1, couplings and blocks of at least 0 and a positive bound, "
                f"got {channels}, {width}, {couplings}, {blocks} and {bound}"
            )
        self.channels, self.bound = channels, bound
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.head = zeroed(nn.Conv2d(width, 2 * channels, 3, padding=1))
        self.couplings = nn.ModuleList(_Coupling(channels, width) for _ in range(couplings))

    def forward(self, image: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of u, and its log-density.

        Args:
            image: the centres of the cells in [-1, 1], (2 k + 1) / levels - 1, (B, C, H, W).
            uniform: U of the same shape, uniform on [0, 1).

        Returns:
            u in [0, 1), of the same shape, and log q(u | k) in nats, (B,) in float64.

        Raises:
            ValueError: if the shapes are not those.
        """
        if image.ndim != 4 or image.shape[1] != self.channels or uniform.shape != image.shape:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W) and uniform numbers of their shape, got "
                f"{tuple(image.shape)} and {tuple(uniform.shape)}: use uniform dequantisation for other data"
            )
        h = self.stem(image)
        for block in self.blocks:
            h = h + block(h)

        eps = torch.finfo(uniform.dtype).eps
        z = noise = uniform.clamp(eps / 4, 1 - eps / 2).logit()
        z, log_det = self._affine(z, self.head(h))
        for i, coupling in enumerate(self.couplings):
            moved = checkerboard(image, i % 2)
            z, change = self._affine(z, coupling(h, z * (1 - moved)) * moved.repeat(2, 1, 1))
            log_det = log_det + change

        log_q = _log_logistic(noise) - log_det - _log_logistic(z)
        return z.sigmoid().clamp(max=1 - eps / 2), precise(log_q).flatten(1).sum(1)

    def _affine(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The shift + e^scale z, and the scale."""
        shift, scale = parameters.chunk(2, 1)
        scale = self.bound * (scale / self.bound).tanh()
        return shift + scale.exp() * z, scale


def checkerboard(image: Tensor, parity: int) -> Tensor:
    """1 where channel + row + column + parity is odd, else 0; (C, H, W)."""
    c, i, j = (torch.arange(n, device=image.device) for n in image.shape[1:])
    return ((c[:, None, None] + i[:, None] + j + parity) % 2).to(image.dtype)


def _log_logistic(z: Tensor) -> Tensor:
    """Log-density of the standard logistic distribution, the derivative of the sigmoid."""
    return logsigmoid(z) + logsigmoid(-z)


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.SiLU(),
        zeroed(nn.Conv2d(width, width, 3, padding=1)),
    )


class _Coupling(nn.Module):
    """Shift and scale of half of the pixels, from the image's features and the other half."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, width, 3, padding=1)
        self.context = nn.Conv2d(width, width, 1)
        self.activation = nn.SiLU()
        self.head = zeroed(nn.Conv2d(width, 2 * channels, 3, padding=1))

    def forward(self, h: Tensor, fixed: Tensor) -> Tensor:
        # tanh(z / 2) = 2 u - 1 is bounded, unlike z.
        parameters: Tensor = self.head(self.activation(self.near((fixed / 2).tanh()) + self.context(h)))
        return parameters
