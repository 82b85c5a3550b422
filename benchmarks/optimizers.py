"""Bits/dim after a short training on the bound, by optimiser and learning rate.

python -m scorefield.benchmarks.optimizers --data=fashion_mnist --optimizer=adam:2e-3 --optimizer=muon:4e-3

The recipe DATA:vdm, with DATA_ROOT as for every command. The runs have the same weights, batches, times and noise.
The number is the bound of the last images of training, fewer than an epoch, so each image was new; with its error.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from scorefield.commands.train import train
from scorefield.configs.greyscale import greyscale


def trained(data: str, optimizer: str, rate: float, images: int, precision: str) -> tuple[float, float, float]:
    """Bits/dim of the last row of the log, its standard error, and seconds."""
    config = greyscale(data, "vdm")
    config.training.update(optimizer=optimizer, learning_rate=rate, images=images, precision=precision)
    config.training.update(sample_every=0, sample_seconds=0.0, checkpoint_seconds=0.0, log_every=50)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), config)
        last = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])
    total = last["bits_per_dim"]["total"]
    return total["mean"], total["error"], time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("mnist", "fashion_mnist"), default="mnist")
    parser.add_argument("--optimizer", action="append", help="NAME:RATE; several times for several")
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args()
    print("| optimiser | bits/dim | seconds |\n|---|---|---|")
    for optimizer in args.optimizer or ["adam:2e-3", "muon:4e-3"]:
        name, rate = optimizer.split(":")
        mean, error, seconds = trained(args.data, name, float(rate), args.images, args.precision)
        print(f"| {name}, {rate} | {mean:.3f} +- {error:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
