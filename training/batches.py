"""Batches of a data set, in an order that the position alone decides."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from training.data import Dataset

Transform = Callable[[Tensor, Generator], Tensor]


class Batches:
    """Endless shuffled batches: a dict of "x0" (B, *D), and "label" (B,) where asked for.

    The stream is one permutation after another, cut into batches without regard to their seams, so every
    image is seen equally often. What comes at a position depends on the seed and the position, not on how it
    was reached: `start` resumes bit for bit.

    Args:
        dataset: where from.
        size: of a batch.
        seed: of order and transformation.
        start: images already seen.
        transform: of stored values and a generator to x0, such as dequantisation and flips.
        labels: whether to give labels.
        label_dropout: the share of labels replaced by "unknown" (num_classes), for classifier-free guidance.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        *,
        seed: int = 0,
        start: int = 0,
        transform: Transform,
        labels: bool = False,
        label_dropout: float = 0.0,
    ) -> None:
        if size < 1:
            raise ValueError(f"expected a batch of at least 1, got {size}")
        if labels and dataset.label is None:
            raise ValueError(f"expected labels in {dataset.name}, which has none: set config.training.labels to False")
        self.dataset, self.size, self.seed, self.start = dataset, size, seed, start
        self.transform, self.labels, self.label_dropout = transform, labels, label_dropout
        self._epoch = -1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        position = self.start
        while True:
            yield self._batch(position)
            position += self.size

    def _batch(self, position: int) -> dict[str, Tensor]:
        rows = self._order(position)
        generator = Generator().manual_seed(_mix(self.seed, 1, position))
        batch = {"x0": self.transform(tensor(self.dataset.x[rows]), generator)}
        if self.labels:
            assert self.dataset.label is not None
            dropped = torch.rand(self.size, generator=generator) < self.label_dropout
            label = torch.as_tensor(self.dataset.label[rows])
            batch["label"] = torch.where(dropped, torch.tensor(self.dataset.num_classes), label)
        return batch

    def _order(self, position: int) -> np.ndarray:
        """The rows at `position .. position + size` of the stream."""
        end, parts = position + self.size, []
        while position < end:
            epoch, offset = divmod(position, len(self.dataset))
            parts.append(self._permutation(epoch)[offset : offset + end - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch = epoch
            self._current = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.dataset))
        return self._current


def tensor(x: np.ndarray) -> Tensor:
    """Stored values as a tensor: floats as they are, integers as int32, which torch can compute with."""
    return torch.as_tensor(x if np.issubdtype(x.dtype, np.floating) else x.astype(np.int32))


def _mix(*words: int) -> int:
    """One 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
