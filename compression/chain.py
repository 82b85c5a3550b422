"""The chain of Gaussian steps that carries the bits, with a grid of integers for each of its levels."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.sde import check_one_level

BINS = 1.0  # bins in the smallest standard deviation of a level
NORMAL = math.log2(2 * math.pi * math.e) / 2  # entropy in bits of a normal of standard deviation 1
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """z_0 next to the data to z_T next to the prior, each on integers: z_i = width_i k_i.

        q(z_0 | x)      = N(alpha_0 x, sigma_0^2)
        q(z_t | z_s)    = N(alpha_{t|s} z_s, sigma_{t|s}^2),                      t = s + 1
        p(z_s | z_t)    = N(z_t / alpha_{t|s} - sigma_t c / alpha_{t|s} eps_hat(z_t), sigma_s^2 c)
        p(z_T)          = N(0, sigma_T^2)

    with alpha_{t|s} = alpha_t / alpha_s, c = 1 - SNR_t / SNR_s and sigma_{t|s}^2 = sigma_t^2 c. The joint of all z
    given x is that of VDM's chain, so the mean of  log q(z | x) - log p(x, z)  is the bound of `likelihood.vlb`
    (Kingma et al. 2021, Eqs. 11-14; Townsend et al. 2019 for bits back; Kingma, F. et al. 2019, "Bit-Swap", for the
    order, which needs the bits of two levels at once and not of all).

    Args:
        ts: the times, (T + 1,), rising.
        alpha: scale of the data, (T + 1,).
        sigma: scale of the noise, (T + 1,).
        up: alpha_{t|s} of each step, (T,).
        up_std: sigma_{t|s}, (T,).
        of_eps: sigma_t c, (T,).
        down_std: sigma_s sqrt(c), (T,).
        width: of a bin of each level, (T + 1,).
    """

    ts: Tensor
    alpha: Array
    sigma: Array
    up: Array
    up_std: Array
    of_eps: Array
    down_std: Array
    width: Array

    @classmethod
    def of(cls, sde: SDE, ts: Tensor, bins: float = BINS) -> "Chain":
        """The chain on a rising grid of times, with this number of bins in the smallest deviation of a level.

        Raises:
            ValueError: for fewer than two times, or a path with a noise level for each dimension.
        """
        check_one_level(sde, "a chain of steps", "train on another path")
        if len(ts) < 2:
            raise ValueError(f"expected a grid of at least two times, got {len(ts)}: take one step or more")
        with torch.no_grad():
            ts = ts.double().cpu()
            log_alpha, log_sigma = (each(ts).double().cpu().numpy() for each in (sde.log_alpha, sde.log_sigma))
        share = -np.expm1(2 * (np.diff(log_alpha) - np.diff(log_sigma)))  # c
        sigma = np.exp(log_sigma)
        up_std, down_std = sigma[1:] * np.sqrt(share), sigma[:-1] * np.sqrt(share)
        drawn, coded = np.append(sigma[0], up_std), np.append(down_std, sigma[-1])
        return cls(
            ts, np.exp(log_alpha), sigma, np.exp(np.diff(log_alpha)), up_std, sigma[1:] * share, down_std,
            np.minimum(drawn, coded) / bins,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """T."""
        return len(self.up)

    @property
    def initial_bits(self) -> float:
        """Bits for each dimension that must be on the stack before the first image: the most that are on loan.

        The level below is coded only when the level above has been drawn from the stack.
        """
        drawn = NORMAL + np.log2(np.append(self.sigma[0], self.up_std) / self.width)
        coded = NORMAL + np.log2(self.down_std / self.width[:-1])
        return float((np.cumsum(drawn)[1:] - np.append(0.0, np.cumsum(coded)[:-1])).max())
