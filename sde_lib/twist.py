"""What a sequential Monte Carlo sampler asks of a denoiser."""

from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor

from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.broadcast import Scale


class Twist(NamedTuple):
    """A proposal and its target at a noise level.

    The next state is proposed by a solver's step with `guided`. The target is the product of the solver's steps
    with the estimates in `factors`, to their powers, times the ratio of the next potential and this one.

    Args:
        guided: estimate of x0 that proposes, (B, *D).
        factors: powers and estimates of x0, (B, *D) each; the powers sum to one.
        log_potential: in nats, up to what all samples of a noise level share, (B,).
    """

    guided: Tensor
    factors: tuple[tuple[float | Tensor, Tensor], ...]
    log_potential: Tensor


class Twisting(Protocol):
    """A denoiser that guides particles, and weighs them."""

    def twist(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Twist:
        """The proposal and the target at a noise level."""

    def finish(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> tuple[Tensor, Tensor]:
        """The last estimate of x0, (B, *D), and the log of its last potential in nats, (B,)."""


def as_twisting(denoiser: object) -> Twisting:
    """The denoiser, once it is known to be one that guides particles.

    Raises:
        ValueError: for others.
    """
    if not (callable(getattr(denoiser, "twist", None)) and callable(getattr(denoiser, "finish", None))):
        raise ValueError(
            f"expected a denoiser that guides particles for Twisted, got {shown(denoiser)}: wrap it, as "
            "PiGDM(denoiser, measurement, noise_std) or ClassifierFree(denoiser, scale)"
        )
    return cast(Twisting, denoiser)
