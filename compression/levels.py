"""The last coder, p(x | z_0): probabilities of the levels next to a point, by the decoders of `likelihood`."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.compression.stack import ESCAPE, Stack
from scorefield.likelihood.decoders import CHUNK, TAIL, Decoder, DiscretisedDecoder, LevelDecoder, log_between
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

    def push(self, stack: Stack, k: NDArray[np.int64], seen: NDArray[np.float64]) -> None:
        """Code levels (n,).

        Args:
            stack: of bits.
            k: the levels.
            seen: z_0 / alpha_0, or D(z_0), (n,).
        """
        for part in reversed(self._parts(len(k))):
            stack.push_rows(k[part], *self._rows(seen[part]), self.levels)

    def pop(self, stack: Stack, seen: NDArray[np.float64]) -> NDArray[np.int64]:
        """The levels (n,) that were pushed."""
        return np.concatenate([stack.pop_rows(*self._rows(seen[part]), self.levels) for part in self._parts(len(seen))])

    def log_prob(self, x0: Tensor, seen: Tensor) -> Tensor:
        """Nats of each value of x0 (B, *D) on the centres of the cells, given z_0 / alpha_0 or D(z_0), (B, *D)."""
        k = quantise(x0, self.levels, low=self.low, high=self.high).reshape(-1).cpu().numpy()
        flat, nats = seen.double().cpu().reshape(-1).numpy(), []
        for part in self._parts(len(k)):
            first, p = self._rows(flat[part])
            at = np.clip(k[part] - first, 0, p.shape[1] - 1)
            of_level = p[np.arange(len(p)), at] * (at == k[part] - first)
            nats.append(np.log(of_level + ESCAPE / self.levels))
        return torch.from_numpy(np.concatenate(nats)).reshape(x0.shape)

    @property
    def _width(self) -> int:
        """Levels in a row: those within nine deviations."""
        reach = math.ceil(TAIL * self.std / cell_width(self.levels, low=self.low, high=self.high))
        return min(2 * reach + 1, self.levels, MOST)

    def _parts(self, count: int) -> list[slice]:
        """Parts of `count` rows, each of which fits into memory."""
        size = max(1, CHUNK // self._width)
        return [slice(first, first + size) for first in range(0, count, size)]

    def _rows(self, seen: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The first level (n,) of each row, and the probabilities (n, w) of the levels from it on."""
        point, count = torch.from_numpy(np.nan_to_num(seen)), self._width
        nearest = quantise(point, self.levels, low=self.low, high=self.high)
        first = (nearest - count // 2).clamp(0, self.levels - count)
        k = first[:, None] + torch.arange(count)
        log_p = self._integrated(point, k) if self.calls_denoiser else self._softmax(point, k)
        return first.numpy(), log_p.exp().numpy()

    def _softmax(self, point: Tensor, k: Tensor) -> Tensor:
        centres = cell_to_value(k.double() + 0.5, self.levels, low=self.low, high=self.high)
        return (-((point[:, None] - centres) / self.std).square() / 2).log_softmax(1)

    def _integrated(self, point: Tensor, k: Tensor) -> Tensor:
        ends = (cell_to_value(k.double() + side, self.levels, low=self.low, high=self.high) for side in (0, 1))
        below, above = ((end - point[:, None]) / self.std for end in ends)
        below = torch.where(k == 0, -math.inf, below)
        above = torch.where(k == self.levels - 1, math.inf, above)
        return log_between(below, above)
