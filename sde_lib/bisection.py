"""Where a condition on time changes."""

from collections.abc import Callable

import torch
from torch import Tensor


def bisect(before: Callable[[Tensor], Tensor], like: Tensor, low: float, high: float, halvings: int = 64) -> Tensor:
    """The t in [low, high] at which `before(t)` changes from true to false; float64, shaped as `like`.

    Where it is true everywhere this is `high`, and where it is false everywhere `low`.
    """
    below = torch.full_like(like, low, dtype=torch.float64)
    above = torch.full_like(like, high, dtype=torch.float64)
    for _ in range(halvings):
        middle = (below + above) / 2
        earlier = before(middle)
        below, above = torch.where(earlier, middle, below), torch.where(earlier, above, middle)
    return (below + above) / 2
