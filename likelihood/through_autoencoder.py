"""The likelihood of an image through an autoencoder: a bound from the likelihood of its codes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scorefield.likelihood.density import Density
from scorefield.likelihood.pixels import PixelDistribution
from scorefield.sde_lib.broadcast import one_each
from scorefield.sde_lib.sde import Noise


class CodeDistribution(Protocol):
    """Q(z | x) of a batch of images: what `models.moments.Moments` has."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def log_var(self) -> Tensor | None: ...

    def sample(self, noise: Tensor) -> Tensor: ...

    def log_prob(self, z: Tensor) -> Tensor: ...


class CodesAndImages(Protocol):
    """What the bound needs of an autoencoder: q(z | x), and the mean of p(x | z)."""

    def moments(self, images: Tensor) -> CodeDistribution: ...

    def decode(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ImageTerms:
    """The three terms of K draws z ~ q(z | x) for each of B images, in nats, (K, B).

    q(z | x) and p(z) are densities in the same coordinates. Here these are the scaled codes of the diffusion. The
    log-determinant of the scale is in both and cancels in their ratio.

    Args:
        pixels: log p(x | z).
        codes: log p(z), of the diffusion.
        encoder: -log q(z | x).
    """

    pixels: Tensor
    codes: Tensor
    encoder: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log p(x | z) + log p(z) - log q(z | x), (K, B)."""
        return self.pixels + self.codes + self.encoder

    def bound(self) -> Tensor:
        """E_q[log p(x | z) + log p(z) - log q(z | x)] <= log p(x), the mean over the draws, (B,)."""
        return self.log_weights.mean(0)

    def importance_bound(self) -> Tensor:
        """E log(1/K sum_k p(x | z_k) p(z_k) / q(z_k | x)) <= log p(x), (B,)  (Burda et al. 2016, Eq. 8).

        It is never below `bound`, and tends to log p(x) for large K. log p(z) must be exact, or share its error among
        the draws: an error of its own in each draw would raise this value.
        """
        return torch.logsumexp(self.log_weights, 0) - math.log(len(self.log_weights))


def check_density(codes: CodeDistribution) -> None:
    """Raises ValueError for an autoencoder whose codes are a function of the image, so that q(z | x) has no density."""
    if codes.log_var is None:
        raise ValueError(
            "expected an autoencoder with a density q(z | x), got codes that are a function of the image: "
            "log q(z | x) is infinite, and there is no bound: take the run of a KL autoencoder"
        )


def terms_of_draw(
    autoencoder: CodesAndImages, pixels: PixelDistribution, x0: Tensor, log_prior: Callable[[Tensor], Density],
    noise: Noise = torch.randn_like, at_once: int | None = None,
) -> ImageTerms:  # fmt: skip
    """The terms of one draw z ~ q(z | x0), (1, B).

    Args:
        autoencoder: with `moments` and `decode`; its coordinates of z are those of log_prior.
        pixels: p(x | z), around the decoded image.
        x0: images in the autoencoder's values, (B, C, *D); integers on the centres of their cells.
        log_prior: the log-likelihood of codes (B, c, *d), or a bound of it.
        noise: source of the normals of z.
        at_once: images that go through the autoencoder at once; all by default.

    Raises:
        ValueError: if q(z | x0) has no density.
    """
    drawn = draw_codes(autoencoder, x0, noise, at_once)
    with torch.no_grad():
        images = torch.cat([autoencoder.decode(z) for z in torch.split(drawn.z, at_once or len(x0))])
        log_p = pixels.log_prob(x0, images)
    each = (log_p, log_prior(drawn.z).log_prob, -drawn.log_q)
    return ImageTerms(*(value.detach().double().cpu()[None] for value in each))


@dataclass(frozen=True)
class DrawnCodes:
    """Codes z ~ q(z | x), (B, c, *d), with log q(z | x) in nats, (B,)."""

    z: Tensor
    log_q: Tensor


def draw_codes(
    autoencoder: CodesAndImages, x0: Tensor, noise: Noise = torch.randn_like, at_once: int | None = None
) -> DrawnCodes:
    """A code of each image. Arguments and errors are those of `terms_of_draw`."""
    with torch.no_grad():
        codes = [autoencoder.moments(part) for part in torch.split(x0, at_once or len(x0))]
        check_density(codes[0])
        eps = torch.split(noise(torch.cat([part.mean for part in codes])), at_once or len(x0))
        z = [part.sample(each) for part, each in zip(codes, eps, strict=True)]
        log_q = torch.cat([part.log_prob(each) for part, each in zip(codes, z, strict=True)])
    return DrawnCodes(torch.cat(z), one_each(log_q, len(x0), "the encoder's log_prob"))


def image_bound(
    autoencoder: CodesAndImages, pixels: PixelDistribution, x0: Tensor, log_prior: Callable[[Tensor], Density], *,
    draws: int = 1, noise: Noise = torch.randn_like,
) -> ImageTerms:  # fmt: skip
    """The terms of a bound of an image's likelihood, for `draws` codes of each image.

        log p(x) >= E_q[log p(x | z)] + E_q[log p(z)] - E_q[log q(z | x)],   z ~ q(z | x)

    Kingma and Welling 2014, Eq. 2; with a diffusion's log p(z), Vahdat et al. 2021 ("LSGM"), Eq. 1. Arguments and
    errors are those of `terms_of_draw`. For example `log_prior=lambda z: log_likelihood(denoiser, sde, z)`.
    """
    if draws < 1:
        raise ValueError(f"expected draws of 1 or more, got {draws}")
    terms = [terms_of_draw(autoencoder, pixels, x0, log_prior, noise) for _ in range(draws)]
    return stack(terms)


def stack(draws: Sequence[ImageTerms]) -> ImageTerms:
    """The terms of several draws, (K, B) of K times (1, B)."""
    return ImageTerms(*(torch.cat([getattr(each, name) for each in draws]) for name in ("pixels", "codes", "encoder")))
