"""A folder of small images against the same images in memory: seconds for an epoch of batches.

python -m scorefield.benchmarks.data [--images=10000] [--side=32] [--batch=128] [--epochs=20]

The first epoch of the folder decodes. Then the epochs are timed in pairs, one of each kind, so that other work of the
machine slows both.
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

from scorefield.training.data import Batches, Dataset, ToModelRange, folder
from scorefield.training.data.batches import Transform


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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = written(Path(temporary), args.images, args.side)
        for run in ("first run", "second run"):
            began = time.perf_counter()
            mapped = folder(root)
            opened = time.perf_counter() - began
            first = epoch(mapped, args.batch, 0, ToModelRange(256, flip=True))
            print(f"{run}: opening {opened:.2f} s, first epoch {first:.3f} s, {len(mapped)} images {mapped.shape}")
        memory = folder(root, cache="off")
        transforms: dict[str, Transform] = {
            "only rows and labels": _identity,
            "scaled, dequantised, flipped": ToModelRange(256, flip=True),
        }
        for name, transform in transforms.items():
            pairs = []
            for i in range(1, args.epochs + 1):
                order = (mapped, memory) if i % 2 else (memory, mapped)
                times = [epoch(data, args.batch, i, transform) for data in order]
                pairs.append(times if i % 2 else times[::-1])
            of_folder, of_memory = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"{name}: folder {of_folder:.3f} s an epoch, memory {of_memory:.3f} s, {ratio:.3f} times as long")


def _identity(x: Tensor, _: Generator) -> Tensor:
    return x


if __name__ == "__main__":
    main()
