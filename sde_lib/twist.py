"""What a sequential Monte Carlo sampler asks of a denoiser."""

from typing import NamedTuple

from torch import Tensor


class Twist(NamedTuple):
    """A proposal and its target at a noise level.

    The next state is proposed by an ancestral step with `guided`. The target is the product of the ancestral steps
    with the estimates in `factors`, to their powers, times the ratio of the next potential and this one.

    Args:
        guided: estimate of x0 that proposes, (B, *D).
        factors: powers and estimates of x0, (B, *D) each; the powers sum to one.
        log_potential: in nats, (B,).
    """

    guided: Tensor
    factors: tuple[tuple[float, Tensor], ...]
    log_potential: Tensor
