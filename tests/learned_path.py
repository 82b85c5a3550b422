"""A path with a weight, as a user may write one: what is said of learned paths is tested with it."""

import math

import torch
from torch import Tensor, nn

from scorefield.sde_lib import SDE


class LearnedPath(nn.Module, SDE):
    """Variance-preserving, with the log-SNR  8 - 14 t + gain sin(pi t)."""

    t_min, t_max = 0.0, 1.0

    def __init__(self, gain: float = 0.5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([gain]))

    def log_snr(self, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64) if not isinstance(t, Tensor) else t
        return (8 - 14 * t + self.gain.to(t) * (math.pi * t).sin()).reshape(t.shape)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -nn.functional.softplus(-self.log_snr(t)) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return -nn.functional.softplus(self.log_snr(t)) / 2
