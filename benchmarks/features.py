"""Inception of 2015-12-05: seconds an image, agreement with the TorchScript file, and what the resizing does to FID.

python -m scorefield.benchmarks.features --weights=inception-2015-12-05.pt --data-root=DATA    needs both; minutes

Seconds are CPU time of one thread. The TorchScript network gets our resized images, so that its figure is for the
network alone; torch-fidelity and clean-fid resize to the same bits (not run here).
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scorefield.evaluation.features import Inception, StoredAs
from scorefield.evaluation.features.inception import RECIPES
from scorefield.evaluation.metrics.frechet import frechet_distance
from scorefield.training.data import cifar10

CIFAR10 = StoredAs((3, 32, 32), 256)


def images(root: Path, split: Literal["train", "test"], count: int) -> Tensor:
    """The first images of a split."""
    return torch.as_tensor(cifar10(root, split).x[:count])


def scripted(weights: Path) -> torch.nn.Module:
    """The layers of the TorchScript network, as published."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load is deprecated
        layers: torch.nn.Module = torch.jit.load(str(weights)).eval().net.layers  # type: ignore[no-untyped-call]
    return layers


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500, help="images of each split, for FID")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    test = images(arguments.data_root, "test", arguments.count)
    train = images(arguments.data_root, "train", arguments.count)
    peer, few = scripted(arguments.weights), min(100, arguments.count)
    print("| resize | seconds an image | TorchScript's | relative difference | FID of 100 images with themselves, tf |")
    print("|---|---|---|---|---|")
    kept: dict[str, Tensor] = {}
    for name, resized in RECIPES.items():
        network = Inception(CIFAR10, arguments.weights, name)
        network(train[:4])
        start = time.process_time()
        found = network(train[:few])["features"]
        ours = (time.process_time() - start) / few
        start = time.process_time()
        theirs = torch.cat([peer(resized(part.float())).flatten(1) for part in torch.split(train[:few], 20)])
        seconds = (time.process_time() - start) / few
        worst = ((found - theirs).norm(dim=1) / theirs.norm(dim=1)).max()
        kept[name] = found
        distance = frechet_distance(found, kept["tf"])
        print(f"| {name} | {ours:.3f} | {seconds:.3f} | {worst:.1e} | {distance:.2f} |", flush=True)
    network = Inception(CIFAR10, arguments.weights)
    distance = frechet_distance(network(train)["features"], network(test)["features"])
    print(f"\nFID tf of the first {len(train)} training images and the first {len(test)} test images: {distance:.4f}")


if __name__ == "__main__":
    main()
