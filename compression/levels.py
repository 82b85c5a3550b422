"""The last coder, p(x | z_0): probabilities of the levels next to a point, by the decoders of `likelihood`."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.compression.stack import ESCAPE
from scorefield.likelihood.decoders import TAIL, Decoder, DiscretisedDecoder, LevelDecoder, log_between
from scorefield.sde_lib.quantise import cell_to_value, cell_width, quantise

MOST = 2**16  # levels in one row


@dataclass(frozen=True)
class ByLevel:
    """p(k | z_0) = softmax_k(-(z_0 / alpha - x_k)^2 / (2 std^2)), or N(D(z_0), std^2) integrated over the cell of k.

    Args:
        levels: the number of values of a dimension.
        low: lower end of the first cell.
        high: upper end of the last cell.
        std: in units of the data; of the softmax it is sigma_0 / alpha_0.
        calls_denoiser: whether it is the second, `DiscretisedDecoder`, and not the first, `LevelDecoder`.
    """

    levels: int
    low: float
    high: float
    std: float
    calls_denoiser: bool

    @property
    def decoder(self) -> Decoder:
        """The same, for `likelihood.vlb` and `likelihood.elbo`."""
        if self.calls_denoiser:
            return DiscretisedDecoder(self.levels, self.low, self.high, self.std)
        return LevelDecoder(self.levels, self.low, self.high)

    def centre(self, k: NDArray[np.int64]) -> NDArray[np.float64]:
        """The values of levels: the centres of their cells."""
        values: NDArray[np.float64] = cell_to_value(
            torch.from_numpy(k).double() + 0.5, self.levels, low=self.low, high=self.high
        ).numpy()
        return values

    def rows(self, seen: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The first level (n,) of each row, and the probabilities (n, w) of the levels from it on.

        Args:
            seen: z_0 / alpha_0, or D(z_0); (n,).
        """
        point = torch.from_numpy(np.nan_to_num(seen))
        reach = math.ceil(TAIL * self.std / cell_width(self.levels, low=self.low, high=self.high))
        count = min(2 * reach + 1, self.levels, MOST)
        nearest = quantise(point, self.levels, low=self.low, high=self.high)
        first = (nearest - count // 2).clamp(0, self.levels - count)
        k = first[:, None] + torch.arange(count)
        log_p = self._integrated(point, k) if self.calls_denoiser else self._softmax(point, k)
        return first.numpy(), log_p.exp().numpy()

    def log_prob(self, x0: Tensor, seen: Tensor) -> Tensor:
        """Nats of each value of x0 (B, *D) on the centres of the cells, given what `rows` is given, (B, *D)."""
        k = quantise(x0, self.levels, low=self.low, high=self.high).reshape(-1).cpu()
        first, p = (torch.from_numpy(each) for each in self.rows(seen.double().cpu().reshape(-1).numpy()))
        at = (k - first).clamp(0, p.shape[1] - 1)
        inside = at == k - first
        of_level = p.gather(1, at[:, None])[:, 0] * inside
        return (of_level + ESCAPE / self.levels).log().reshape(x0.shape)

    def _softmax(self, point: Tensor, k: Tensor) -> Tensor:
        centres = cell_to_value(k.double() + 0.5, self.levels, low=self.low, high=self.high)
        return (-((point[:, None] - centres) / self.std).square() / 2).log_softmax(1)

    def _integrated(self, point: Tensor, k: Tensor) -> Tensor:
        ends = (cell_to_value(k.double() + side, self.levels, low=self.low, high=self.high) for side in (0, 1))
        below, above = ((end - point[:, None]) / self.std for end in ends)
        below = torch.where(k == 0, -math.inf, below)
        above = torch.where(k == self.levels - 1, math.inf, above)
        return log_between(below, above)
