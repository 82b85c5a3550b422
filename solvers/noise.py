"""Noise that belongs to the sample, not to the batch."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class PerSampleNoise:
    """Standard normals from one generator for each sample, so that sample `i` of a seed is the same in any batch.

    `noise(x)` returns a tensor like `x (B, *D)`. Each call continues the streams of all samples.

    Args:
        seed: of the run.
        indices: the number of each sample in the run, B of them: `range(64)`, or `range(128, 192)` for a chunk.
        stream: numbers that name one of the seed's streams. The numbers of two streams are independent, and those of a
            stream and of any stream of another seed too. Adding a number to the seed is not: that is another seed.
    """

    def __init__(self, seed: int, indices: Iterable[int], stream: Sequence[int] = ()) -> None:
        if seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {seed}")
        # The CPU's generator keeps 32 bits of a seed: an offset drawn from `seed` and the index added to it
        # never gives two samples of a run the same numbers.
        offset = int(np.random.SeedSequence(seed, spawn_key=tuple(stream)).generate_state(1)[0])
        self._seeds = [(offset + i) % 2**32 for i in indices]
        self._generators: list[torch.Generator] = []

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape)
        for row, generator in zip(out, self._streams(x), strict=True):
            row.normal_(generator=generator)
        return out

    def take(self, rows: Iterable[int]) -> "PerSampleNoise":
        """The streams of some samples of the batch, from their beginning."""
        part = PerSampleNoise(0, ())
        part._seeds = [self._seeds[row] for row in rows]
        return part

    def uniform(self, x: Tensor) -> Tensor:
        """Uniform on [0, 1), like `x (B, *D)`, from the same streams."""
        out = x.new_empty(x.shape)
        for row, generator in zip(out, self._streams(x), strict=True):
            row.uniform_(generator=generator)
        return out

    def _streams(self, x: Tensor) -> list[torch.Generator]:
        if len(x) != len(self._seeds):
            raise ValueError(f"expected a batch of {len(self._seeds)}, one sample for each index, got {len(x)}")
        if not self._generators:
            self._generators = [torch.Generator(x.device).manual_seed(seed) for seed in self._seeds]
        return self._generators
