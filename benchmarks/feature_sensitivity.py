"""How well features tell changed samples from real ones, by the Frechet distance.

python -m scorefield.benchmarks.feature_sensitivity --workdir=RUN [--num=500] [--features=own --features=pca ...]

The images of both splits of a run's data are shuffled and dealt into five sets of `num`. Two are references. The
others against these are the floor, with its deviation. Then copies of a set are changed, or chosen. A row has the
distance of each, divided by the floor. The smallest of (distance - floor) / deviation is at the end.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import conv2d

from scorefield.commands.features import open_features
from scorefield.commands.run import stored_tensor
from scorefield.commands.trained import open_trained
from scorefield.evaluation.features import Features, StoredAs
from scorefield.evaluation.metrics.frechet import frechet_distance

DEFAULT = ("pixels", "pca:components=16", "pca", "random", "own")
CHANGES = ("blur", "shift", "noise", "contrast", "no class 3", "half the classes", "100 images")


def changed(images: Tensor, stored_as: StoredAs) -> dict[str, Tensor]:
    """Copies: blurred by 1 2 1, moved by a pixel, with noise of 5% of the range, and of 90% contrast."""
    unit = stored_as.unit(images)
    top = (stored_as.levels or 2) - 1
    line = torch.tensor([1.0, 2, 1]) / 4
    kernel = (line[:, None] * line).expand(unit.shape[1], 1, 3, 3)
    noise = torch.randn(unit.shape, generator=Generator().manual_seed(0))
    made = {
        "blur": conv2d(unit, kernel, padding=1, groups=unit.shape[1]),
        "shift": unit.roll(1, -1),
        "noise": unit + 0.05 * noise,
        "contrast": 0.9 * unit,
    }
    return {name: (x * top).round().clamp(0, top).to(images.dtype) for name, x in made.items()}


def chosen(label: Tensor, num: int) -> dict[str, Tensor]:
    """Rows of real images: without a class, with the first half of the classes, and 100 images again and again."""
    found = {
        "no class 3": (label != 3).nonzero()[:, 0],
        "half the classes": (label < (int(label.max()) + 1) / 2).nonzero()[:, 0],
        "100 images": torch.arange(100),
    }
    return {name: rows[torch.arange(num) % len(rows)] for name, rows in found.items()}


def row(features: Features, sets: list[Tensor], label: Tensor, stored_as: StoredAs) -> tuple[float, float, list[float]]:
    """The floor, its relative deviation, and the distance of each change divided by the floor."""
    num = len(sets[0])
    of = [features.of(images)["features"] for images in sets]
    references, real = of[:2], of[2:]
    floors = [frechet_distance(a, b) for a in real for b in references]
    copies = {name: features.of(images)["features"] for name, images in changed(sets[2], stored_as).items()}
    copies |= {name: torch.cat(real)[rows] for name, rows in chosen(label, num).items()}
    floor = float(np.mean(floors))
    ratios = [float(np.mean([frechet_distance(copies[name], b) for b in references])) / floor for name in CHANGES]
    return floor, float(np.std(floors, ddof=1)) / floor, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--features", action="append")
    options = parser.parse_args()
    trained = open_trained(options.workdir)
    stored_as = StoredAs(trained.run.data.shape, trained.run.data.levels)
    splits = [trained.run.dataset(split) for split in ("train", "test")]
    images = torch.cat([stored_tensor(split) for split in splits])
    label = torch.cat([torch.as_tensor(split.label) for split in splits])
    order = torch.randperm(len(images), generator=Generator().manual_seed(0))
    num = min(options.num, len(images) // 5)
    images, label = images[order[: 5 * num]], label[order[: 5 * num]]

    print(f"{trained.run.data.name}, {num} images a set\n")
    print(f"| features | d | floor | {' | '.join(CHANGES)} | least, in deviations | ms/image |")
    print("|" + " --- |" * (len(CHANGES) + 5))
    for spec in options.features or DEFAULT:
        features = open_features(spec, stored_as, trained.run.device, trained).fitted(images[: 2 * num])
        began = time.process_time()
        floor, spread, ratios = row(features, list(torch.split(images, num)), label[2 * num :], stored_as)
        milliseconds = (time.process_time() - began) * 1000 / (9 * num)
        d = features(images[:1])["features"].shape[1]
        shown = " | ".join(f"{ratio:.3g}" for ratio in ratios)
        least = (min(ratios) - 1) / spread
        print(
            f"| {spec} | {d} | {floor:.2g} ± {100 * spread:.0f}% | {shown} | {least:.1f} | {milliseconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
