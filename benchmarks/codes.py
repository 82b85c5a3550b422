"""A training step of latent diffusion on cached codes, against one that encodes its images.

python -m scorefield.benchmarks.codes

Encoders of the published sizes and the U-Net of configs/latent.py, on random images. Steps take turns, so that the
machine's noise is the same for both; the table has medians.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from scorefield.commands.autoencoder_files import StoredAutoencoder
from scorefield.commands.code_cache import CodeCache, DrawCodes, EncodeImages
from scorefield.configs import build, latent
from scorefield.training import EMA, Batches, Model, Step, ToModelRange, TrainingState, run, weighting
from scorefield.training.adam import adam
from scorefield.training.data import Dataset
from scorefield.training.objectives import dsm

# Name: encoder, side of the images, images in a batch.
CASES = {
    "width 32, f = 4, 32x32": ("kl:width=32,multipliers=(1,2,2),blocks=1,middle_attention=False", 32, 32),
    "published f = 4, 32x32": ("kl:width=128,multipliers=(1,2,4)", 32, 16),
    "published f = 8, 64x64": ("kl:width=128,multipliers=(1,2,4,4)", 64, 8),
}


def steps(batches: Batches, shape: tuple[int, ...]) -> Iterator[tuple[Step, ...]]:
    """A training in codes, one step at a time."""
    torch.manual_seed(0)
    config = latent.get_config()
    sde = build.build(build.SDES, config.sde)
    model: Model = Model(build.denoiser(config, shape, None, sde), sde)
    state = TrainingState(model, adam(model, 1e-3), EMA(model, 0.999))
    objective = dsm.objective(sde, state.optimizer, weight=weighting.simple)
    return run(state, [objective], batches, images=10**9)


def measured(spec: str, side: int, batch: int, count: int, place: Path) -> tuple[float, float, float]:
    """Milliseconds of a step on cached codes, of one that encodes, and their ratio, paired."""
    net = build.spec(build.AUTOENCODERS, spec)
    module = build.build(build.AUTOENCODERS, net, channels=3).eval().requires_grad_(False)
    x = np.random.default_rng(0).integers(0, 256, (4 * batch, 3, side, side), np.uint8)
    dataset, stored = Dataset("random", "train", x, 256), StoredAutoencoder(module, net, (3, side, side))
    cache = CodeCache(place, stored, dataset)
    cache.make(show=False)
    ways = [
        steps(Batches(data, batch, transform=transform), stored.code_shape(dataset.shape))
        for data, transform in (
            (cache.read(), DrawCodes(stored.scaled)),
            (dataset, EncodeImages(stored.scaled, ToModelRange(256, dequantise=False))),
        )
    ]
    seconds: list[list[float]] = [[], []]
    for turn, (i, way) in itertools.product(range(count + 2), enumerate(ways)):  # the first two turns prepare
        began = time.perf_counter()
        next(way)
        if turn > 1:
            seconds[i].append(time.perf_counter() - began)
    cached, encoded = (1000 * statistics.median(own) for own in seconds)
    return cached, encoded, statistics.median(b / a for a, b in zip(*seconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9)
    args = parser.parse_args()
    print("| encoder and images | cached, ms | encoded each time, ms | ratio |\n|---|---|---|---|")
    for name, case in CASES.items():
        with TemporaryDirectory() as place:
            cached, encoded, ratio = measured(*case, args.steps, Path(place))
        print(f"| {name} | {cached:.0f} | {encoded:.0f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
