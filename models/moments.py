"""What an encoder says of the codes of images: a normal distribution, or one point."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """q(z | x) of images: normal and independent in every number of the code, or the mean alone.

    q(z | x) = N(z; mean, exp(log_var))    (Kingma and Welling 2014, Section 3)

    Args:
        mean: (B, c, h, w).
        log_var: the logarithm of the variance, (B, c, h, w), None for an encoder that is deterministic.
    """

    mean: Tensor
    log_var: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """Z = mean + exp(log_var / 2) noise, for standard normal noise; the mean of a deterministic encoder."""
        return self.mean if self.log_var is None else self.mean + (0.5 * self.log_var).exp() * noise

    def kl(self) -> Tensor:
        """KL(q(z | x) || N(0, 1)), (B,), in nats: the sum of `kl_of_each`, with its errors."""
        return self.kl_of_each().flatten(1).sum(1)

    def kl_of_each(self) -> Tensor:
        """KL(q(z | x) || N(0, 1)) of each number of the code, (B, c, h, w), in nats.

        1/2 (mean^2 + exp(log_var) - 1 - log_var)    (Kingma and Welling 2014, Appendix B)

        Raises:
            ValueError: if the encoder is deterministic.
        """
        mean, log_var = self._normal("the divergence")
        return 0.5 * (mean**2 + log_var.exp() - 1 - log_var)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z | x), (B,), in nats.

        Raises:
            ValueError: if the encoder is deterministic.
        """
        mean, log_var = self._normal("the density")
        return -0.5 * ((z - mean) ** 2 * (-log_var).exp() + log_var + math.log(2 * math.pi)).flatten(1).sum(1)

    def scaled(self, shift: Tensor | float, scale: Tensor | float) -> "Moments":
        """The moments of scale (z - shift).

        Args:
            shift: one number, or one for each channel, (c,) or (c, 1, 1).
            scale: likewise; positive.
        """
        shift, scale = _by_channel(shift, self.mean), _by_channel(scale, self.mean)
        mean = scale * (self.mean - shift)
        return Moments(mean, None if self.log_var is None else self.log_var + 2 * scale.log())

    def widened(self, noise: float) -> "Moments":
        """The moments of codes with further independent noise of a deviation: variance exp(log_var) + noise^2.

        Raises:
            ValueError: if the encoder is deterministic.
        """
        if self.log_var is None:
            raise ValueError(
                "expected an encoder with a variance, whose codes can be widened, got a deterministic one: use a KL "
                "autoencoder"
            )
        return Moments(self.mean, (self.log_var.exp() + noise**2).log() if noise else self.log_var)

    def _normal(self, what: str) -> tuple[Tensor, Tensor]:
        if self.log_var is None:
            raise ValueError(
                f"expected an encoder with a variance for {what} of its codes, got a deterministic one: use a KL "
                "autoencoder"
            )
        # In at least float32: 16 bits lose the digits of a sum over a code.
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        return self.mean.to(wide), self.log_var.to(wide)


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder makes of images in training.

    Args:
        images: (B, C, H, W).
        regulariser: the loss on the codes, (B,): KL in nats, a codebook's loss, or zero.
        numbers: of each image, to be logged: name -> (B,).
        index: of the codebook's entries in use, (B, h, w), for an autoencoder that quantises.
    """

    images: Tensor
    regulariser: Tensor
    numbers: dict[str, Tensor]
    index: Tensor | None = None


def _by_channel(value: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
