"""Batches of a data set, as a function of the seed and the position in the stream."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from scorefield.sde_lib.quantise import place_in_cell
from scorefield.training.data.conditions import mirrored, says_a_side
from scorefield.training.data.dataset import Dataset

Transform = Callable[[Tensor, Generator], Tensor | dict[str, Tensor]]
PREFETCHED = 3  # batches that wait for a CUDA device


class Batches:
    """Endless shuffled batches: dicts of "x0" (B, *D), and "label" (B,) with `labels`; and the denoiser's conditions.

    The stream is one permutation after another. A batch may cross from one to the next, so every image is seen equally
    often. A batch depends on the seed, its position and the kind of device, which fixes the random numbers. It does not
    depend on the batches before it: `start` resumes to the bit.

    No Python runs for a single image. The batch goes to the device in its stored type, a byte for each value of an
    image, and is transformed there. On CUDA a thread prepares it in pinned memory, and nothing waits.

    Args:
        dataset: the data.
        size: of a batch.
        seed: of order and transformation.
        start: images already seen.
        transform: (stored values, integers as int32; a generator), both on the device, to x0, or to a dict of x0 and
            what is made of the same images; see `ToModelRange`. A `Flipping` one also says which images it mirrors.
        labels: whether batches have labels.
        label_dropout: the share of labels replaced by "unknown" (num_classes), for classifier-free guidance. With
            `known`, the share of examples without any condition.
        device: where the batches go.
        rows: the part of each batch that this process gets. All rows are drawn, so that the processes together see what
            one process would. `train` takes its rows itself and needs complete batches.
        cond: numbers (N, ...) with a row for each item, by the name that a batch has them under: `boxes`, `map`,
            `tokens` of the captions. Integers become int64. Boxes and pictures are mirrored with their image.
        known: whether batches have "known" (B,) bool, False for examples whose conditions are dropped.

    Raises:
        ValueError: if the batch is empty, there are no labels, or conditions have other lengths or cannot be mirrored.
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
        device: torch.device | str = "cpu",
        rows: slice | None = None,
        cond: Mapping[str, NDArray[Any]] | None = None,
        known: bool = False,
    ) -> None:
        if size < 1:
            raise ValueError(f"expected a batch of at least 1, got {size}: give a larger one")
        if labels and dataset.label is None:
            raise ValueError(f"expected labels in {dataset.name}, which has none: set config.training.labels to False")
        self.dataset, self.size, self.seed, self.start = dataset, size, seed, start
        self.transform, self.labels, self.label_dropout = transform, labels, label_dropout
        self.device, self.rows = torch.device(device), slice(None) if rows is None else rows
        self.cond, self.known = dict(cond or {}), known
        for key, array in self.cond.items():
            _check_condition(dataset, key, array)
        if "tokens" in self.cond and isinstance(transform, Flipping) and transform.flip:
            check_mirrored_captions(dataset)
        self._label = np.zeros(len(dataset), np.int64) if dataset.label is None else dataset.label
        self._epoch = -1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self.device.type != "cuda":
            yield from map(self._transformed, self._stored())
            return
        with Prefetcher(self._stored(), PREFETCHED) as ready:
            yield from map(self._transformed, ready)

    def _stored(self) -> Iterator["_Stored"]:
        position = self.start
        while True:
            order = self._order(position)
            tensors = [as_stored(rows[order]) for rows in (self.dataset.x, self._label, *self.cond.values())]
            x, label, *cond = (each.pin_memory() for each in tensors) if self.device.type == "cuda" else tensors
            yield _Stored(position, x, label, dict(zip(self.cond, cond, strict=True)))
            position += self.size

    def _transformed(self, stored: "_Stored") -> dict[str, Tensor]:
        generator = Generator(self.device).manual_seed(_mix(self.seed, 1, stored.position))
        x = stored.x.to(self.device, non_blocking=True)
        x = x if x.is_floating_point() else x.to(torch.int32)  # which torch can compute with
        flipped = None
        if isinstance(self.transform, Flipping):
            x0, flipped = self.transform.with_flips(x, generator)
        else:
            x0 = self.transform(x, generator)
        batch = dict(x0) if isinstance(x0, dict) else {"x0": x0}
        if self.labels or self.known:
            dropped = torch.rand(self.size, generator=generator, device=self.device) < self.label_dropout
            if self.labels:
                label = stored.label.to(self.device, non_blocking=True)
                batch["label"] = label.masked_fill(dropped, self.dataset.num_classes or 0)
            if self.known:
                batch["known"] = ~dropped
        for key, value in stored.cond.items():
            value = value.to(self.device, non_blocking=True)
            value = value if value.is_floating_point() or value.dtype == torch.bool else value.long()
            batch[key] = value if flipped is None else mirrored(key, value, flipped)
        return {key: value[self.rows] for key, value in batch.items()}

    def _order(self, position: int) -> np.ndarray:
        """The rows of the data set at `position .. position + size` of the stream."""
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


@runtime_checkable
class Flipping(Protocol):
    """A transform that mirrors some images."""

    def __call__(self, stored: Tensor, generator: Generator) -> Tensor | dict[str, Tensor]:
        """What `with_flips` makes."""
        ...

    @property
    def flip(self) -> bool:
        """Whether it does."""
        ...

    def with_flips(self, stored: Tensor, generator: Generator) -> tuple[Tensor | dict[str, Tensor], Tensor | None]:
        """What the transform makes, and which images it has mirrored, (B,) bool; None if none can be."""
        ...


@dataclass(frozen=True)
class ToModelRange:
    """Stored integers k as  x0 = low + (high - low) (k + u) / levels,  half of the images flipped.

    Continuous data (levels None) is only flipped. The generator draws u for each entry, then a flip for each item. The
    host never waits for the device.

    Args:
        levels: of the data.
        low: where the first cell begins.
        high: where the last cell ends.
        dequantise: u uniform on [0, 1), instead of 1/2.
        flip: whether to swap left and right in half of the images.
    """

    levels: int | None
    low: float = -1.0
    high: float = 1.0
    dequantise: bool = True
    flip: bool = False

    def __call__(self, stored: Tensor, generator: Generator) -> Tensor:
        return self.with_flips(stored, generator)[0]

    def with_flips(self, stored: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """x0, and which images are flipped, (B,) bool; None if none can be."""
        if self.levels is None:
            x0 = stored.float()
        else:
            u = torch.rand(stored.shape, generator=generator, device=stored.device) if self.dequantise else 0.5
            x0 = place_in_cell(stored, u, self.levels, low=self.low, high=self.high)
        if not self.flip:
            return x0, None
        flipped = torch.rand(len(x0), generator=generator, device=x0.device) < 0.5
        return torch.where(flipped.view(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0), flipped


def check_mirrored_captions(dataset: Dataset) -> None:
    """Raises ValueError if a caption says "left" or "right", so that it would be wrong for a mirrored image."""
    if "caption" in dataset.cond and (text := says_a_side(dataset.cond["caption"])):
        raise ValueError(
            f"expected captions that stay true of a mirrored image, got {text[:80]!r} in {dataset.name}: set "
            "config.transform.flip to False"
        )


def _check_condition(dataset: Dataset, key: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf" or len(array) != len(dataset):
        raise ValueError(
            f"expected {key!r} as numbers with {len(dataset)} rows, one for each item of {dataset.name}, got "
            f"{array.shape} in {array.dtype}: give ready numbers, as tokens of captions"
        )


@dataclass(frozen=True)
class _Stored:
    position: int
    x: Tensor
    label: Tensor
    cond: dict[str, Tensor]


class Prefetcher:
    """The items of an iterator, produced by a thread up to `count` of them in advance; its errors are raised here.

    `with Prefetcher(items, count) as ready:` starts the thread; the end of the block ends it.
    """

    def __init__(self, items: Iterator[_Stored], count: int) -> None:
        self._items = items
        self._ready: queue.Queue[_Stored | BaseException] = queue.Queue(count)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True, name="batches")

    def __enter__(self) -> Iterator[_Stored]:
        self._thread.start()
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            while not self._ready.empty():  # the thread may wait for room in the queue
                self._ready.get_nowait()
            self._thread.join(0.01)

    def _iterate(self) -> Iterator[_Stored]:
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def _produce(self) -> None:
        try:
            for item in self._items:
                self._ready.put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._ready.put(error)


def as_stored(x: np.ndarray) -> Tensor:
    """Stored values as a tensor of their own type."""
    return torch.as_tensor(x if x.flags.writeable else x.copy())


def tensor(x: np.ndarray) -> Tensor:
    """Stored values as a tensor: floats as they are, integers as int32, which torch can compute with."""
    return as_stored(np.asarray(x) if np.issubdtype(x.dtype, np.floating) else x.astype(np.int32))


def _mix(*words: int) -> int:
    """A 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
