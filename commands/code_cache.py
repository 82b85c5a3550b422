"""The moments of an autoencoder's codes, computed once for a data set and read from files afterwards.

FOLDER/codes.json            which autoencoder, which data, how many
FOLDER/moments-00000.npy     of SHARD images each: (n, views, channels, h, w) float32; views: the image, its mirror
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from scorefield.commands.autoencoder_files import StoredAutoencoder, encoded_at_once
from scorefield.commands.outputs import write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.models.latent import ScaledAutoencoder
from scorefield.models.moments import Moments
from scorefield.training.checkpoints.atomic import atomic_file
from scorefield.training.data import Dataset, ToModelRange
from scorefield.training.data.batches import tensor
from scorefield.training.data.files.cache import locked

SHARD = 4096  # images; an interrupted command continues with the next shard
FACTS = "codes.json"


def encoded(stored: StoredAutoencoder, dataset: Dataset, rows: range, flip: bool = False) -> Iterator[Tensor]:
    """The moments of some images on the autoencoder's device, a few at once, (n, views, channels, h, w) float32."""
    to_range = ToModelRange(dataset.levels, stored.low, stored.high, dequantise=False)
    step, device = encoded_at_once(dataset.shape), next(stored.module.parameters()).device
    for first in range(rows.start, rows.stop, step):
        kept = tensor(dataset.x[first : min(first + step, rows.stop)])
        images = to_range(kept, Generator()).to(device)
        views = [images, images.flip(-1)] if flip else [images]
        with torch.no_grad():
            yield torch.stack([packed(stored.module.moments(each)) for each in views], 1).float()  # type: ignore[operator]


@dataclass(frozen=True)
class CodeCache:
    """The cached codes of a data set.

    Args:
        place: a directory of such folders.
        stored: the autoencoder.
        dataset: the images.
        flip: whether the mirrored images have codes too.
    """

    place: Path
    stored: StoredAutoencoder
    dataset: Dataset
    flip: bool = False

    @property
    def folder(self) -> Path:
        """Of this data set."""
        name = "".join(each if each.isalnum() or each in "-_" else "_" for each in self.dataset.name)
        return self.place / f"{name}_{self.dataset.split}_{self.dataset.fingerprint[:12]}{'_flip' if self.flip else ''}"

    @property
    def facts(self) -> dict[str, Any]:
        """What codes.json says."""
        return {
            "autoencoder_sha256": self.stored.sha256,
            "data": self.dataset.name,
            "split": self.dataset.split,
            "data_sha256": self.dataset.fingerprint,
            "images": len(self.dataset),
            "views": 1 + self.flip,
            "shard": SHARD,
        }

    def check(self) -> None:
        """Raises ValueError if the folder has codes of another autoencoder, or other ones than its name says."""
        if not (self.folder / FACTS).is_file():
            return
        there, here = self._read_facts(), self.facts
        remedy = f"make them again with --mode=codes --workdir={self.place.parent}"
        if there.get("autoencoder_sha256") != here["autoencoder_sha256"]:
            was, now = str(there.get("autoencoder_sha256"))[:12], here["autoencoder_sha256"][:12]
            raise ValueError(
                f"expected codes of this autoencoder ({now}), got those of {was} in {self.folder}: {remedy}"
            )
        if there != here:
            odd = next(key for key in here if there.get(key) != here[key])
            raise ValueError(f"expected {odd} of {here[odd]} in {self.folder}, got {there.get(odd)}: {remedy}")

    def clear(self) -> None:
        """Remove the codes of this data set, if there are any."""
        for file in (self.folder / FACTS, *self._shards):
            file.unlink(missing_ok=True)

    def make(self, show: bool = True) -> None:
        """Encode what is missing.

        Raises:
            ValueError: as `check`.
        """
        if self.complete:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", needed=False):  # of several processes one encodes, and the others wait
            self._make(show)

    @property
    def complete(self) -> bool:
        """Whether all codes are there.

        Raises:
            ValueError: as `check`.
        """
        self.check()
        return all(file.is_file() for file in (self.folder / FACTS, *self._shards))

    def _make(self, show: bool) -> None:
        self.check()
        write_json(self.folder / FACTS, self.facts)
        missing = [i for i, file in enumerate(self._shards) if not file.is_file()]
        count = sum(len(self._rows(i)) for i in missing)
        with progress_bar("codes", count, show, unit="image") as bar:
            for i in missing:
                parts = []
                for part in encoded(self.stored, self.dataset, self._rows(i), self.flip):
                    parts.append(part.cpu().numpy())
                    bar.skip(len(part))
                with atomic_file(self._shards[i]) as place, place.open("wb") as file:
                    np.save(file, np.concatenate(parts), allow_pickle=False)

    def read(self) -> Dataset:
        """The moments as a data set, with the labels and the conditioning of the images.

        Raises:
            ValueError: as `check`.
        """
        self.check()
        rows = ShardedRows.of([np.load(file, mmap_mode="r", allow_pickle=False) for file in self._shards])
        return replace(self.dataset, x=rows, levels=None)

    @property
    def _shards(self) -> list[Path]:
        return [self.folder / f"moments-{i:05d}.npy" for i in range(-(-len(self.dataset) // SHARD))]

    def _rows(self, shard: int) -> range:
        return range(shard * SHARD, min((shard + 1) * SHARD, len(self.dataset)))

    def _read_facts(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.folder / FACTS).read_text())
        except ValueError:
            return {}
        return facts


class ShardedRows:
    """Arrays (n, *D) one after another, read row by row; it has what a `Dataset` needs of an array.

    Args:
        parts: such as memory-mapped arrays, of one shape of a row.
    """

    def __init__(self, parts: list[NDArray[Any]]) -> None:
        self._parts, self.dtype = parts, parts[0].dtype
        self._ends = np.cumsum([len(part) for part in parts])

    @classmethod
    def of(cls, parts: list[NDArray[Any]]) -> NDArray[Any]:
        """The rows, typed as the array that they stand in for."""
        return cast("NDArray[Any]", cls(parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self._ends[-1]), *self._parts[0].shape[1:])

    @property
    def ndim(self) -> int:
        return self._parts[0].ndim

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        index = np.arange(len(self))[rows]
        which = np.searchsorted(self._ends, index, side="right")
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        for part in np.unique(which):
            here = which == part
            begins = self._ends[part] - len(self._parts[part])
            out[here] = self._parts[part][index[here] - begins]
        return out


@dataclass(frozen=True)
class DrawCodes:
    """Stored moments (B, views, channels, h, w) as codes: a view at random, then  z = mean + std noise,  scaled.

    Args:
        scaled: the autoencoder.
        flip: whether there are two views.
    """

    scaled: ScaledAutoencoder
    flip: bool = False

    def __call__(self, stored: Tensor, generator: Generator) -> Tensor:
        return self.with_flips(stored, generator)[0]

    def with_flips(self, stored: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """The codes, and which are of mirrored images, (B,) bool; None with one view."""
        chosen, flipped = stored[:, 0], None
        if self.flip:
            flipped = torch.rand(len(stored), generator=generator, device=stored.device) < 0.5
            chosen = torch.where(flipped.view(-1, 1, 1, 1), stored[:, 1], chosen)
        channels = int(self.scaled.autoencoder.code_channels)  # type: ignore[arg-type]
        return _drawn(self.scaled.scaled(unpacked(chosen, channels)), generator), flipped


@dataclass(frozen=True)
class EncodeImages:
    """Stored images as codes, encoded now; the random numbers are those of `DrawCodes`.

    Args:
        scaled: the autoencoder.
        to_range: from stored values to the range that it takes.
    """

    scaled: ScaledAutoencoder
    to_range: ToModelRange

    @property
    def flip(self) -> bool:
        """Whether images are mirrored."""
        return self.to_range.flip

    def __call__(self, stored: Tensor, generator: Generator) -> Tensor:
        return self.with_flips(stored, generator)[0]

    def with_flips(self, stored: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """The codes, and which are of mirrored images, (B,) bool; None if none can be."""
        images, flipped = self.to_range.with_flips(stored, generator)
        return self.of_images(images, generator), flipped

    def of_images(self, images: Tensor, generator: Generator) -> Tensor:
        """The codes of images in the range that the autoencoder takes, (B, c, h, w)."""
        with torch.no_grad():
            return _drawn(self.scaled.moments(images), generator)


def packed(moments: Moments) -> Tensor:
    """Mean and log-variance as one tensor, (B, channels, h, w)."""
    return moments.mean if moments.log_var is None else torch.cat([moments.mean, moments.log_var], 1)


def unpacked(stored: Tensor, channels: int) -> Moments:
    """What `packed` made, of codes with so many channels."""
    return Moments(stored) if stored.shape[1] == channels else Moments(*torch.split(stored, channels, 1))


def _drawn(moments: Moments, generator: Generator) -> Tensor:
    mean = moments.mean
    return moments.sample(torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype))
