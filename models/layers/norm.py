"""Group normalisation."""

import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import group_norm

# Makes the normalisation of a number of channels.
Norm = Callable[[int], "GroupNorm"]


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm (Wu and He 2018) in the precision of its weights.

    y = weight (x - mean) / std + bias,    with the mean and the variance + eps of an image's group of channels
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        x = input.to(self.weight.dtype)  # on CPUs 16-bit images have a slow backward pass
        # Of channels-last images torch has no forward mode and no batched backward pass; training is faster with them.
        if not self.training or unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            x = x.contiguous()
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def make_norm(channels: int, groups: int = 32, smallest: int = 4, eps: float = 1e-6) -> GroupNorm:
    """A normalisation of 32 groups, or of fewer where these would not fit or would have under four channels."""
    most = max(1, min(groups, channels // smallest))
    return GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels, eps)


def norms(groups: int = 32, smallest: int = 4, eps: float = 1e-6) -> Norm:
    """`make_norm` with these settings."""
    return functools.partial(make_norm, groups=groups, smallest=smallest, eps=eps)
