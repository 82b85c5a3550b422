"""A folder of small images against the same images in memory: seconds an epoch of batches takes.

python -m benchmarks.data [--images=10000] [--side=32] [--batch=128] [--epochs=20]

The first epoch of the folder decodes; after it, a pair of epochs is timed at a time, one of each, so that whatever else
the machine does slows both.
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Generator, Tensor

from scorefield.training import Batches
from scorefield.training.data import Dataset, folder
from scorefield.training.data.batches import ToModelRange, Transform


def written(root: Path, count: int, side: int) -> Path:
    """PNG files of noise, a thousand in a folder."""
    random = np.random.default_rng(0)
    for i in range(count):
        place = root / f"{i // 1000:03}"
        place.mkdir(exist_ok=True)
        Image.fromarray(random.integers(256, size=(side, side, 3), dtype=np.uint8)).save(place / f"{i:06}.png")
    return root


def epoch(dataset: Dataset, batch: int, number: int, transform: Transform) -> float:
    """Seconds of a pass over the data."""
    batches = Batches(dataset, batch, start=number * len(dataset), transform=transform, labels=True)
    began = time.perf_counter()
    for _ in islice(batches, len(dataset) // batch):
        pass
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"images": 10_000, "side": 32, "batch": 128, "epochs": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = written(Path(temporary), given.images, given.side)
        for run in ("first run", "second run"):
            began = time.perf_counter()
            mapped = folder(root)
            opened = time.perf_counter() - began
            first = epoch(mapped, given.batch, 0, ToModelRange(256, flip=True))
            print(f"{run}: opening {opened:.2f} s, first epoch {first:.3f} s, {len(mapped)} images {mapped.shape}")
        memory = folder(root, cache="off")
        transforms: dict[str, Transform] = {
            "rows and labels alone": _as_it_is,
            "scaled, dequantised, flipped": ToModelRange(256, flip=True),
        }
        for name, transform in transforms.items():
            pairs = []
            for i in range(1, given.epochs + 1):
                order = (mapped, memory) if i % 2 else (memory, mapped)
                times = [epoch(data, given.batch, i, transform) for data in order]
                pairs.append(times if i % 2 else times[::-1])
            of_folder, of_memory = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"{name}: folder {of_folder:.3f} s an epoch, memory {of_memory:.3f} s, {ratio:.3f} times as long")


def _as_it_is(x: Tensor, _: Generator) -> Tensor:
    return x


if __name__ == "__main__":
    main()
