"""The cost of a training step, and the variance of its loss, by schedule: fixed, measured times, learned.

python -m scorefield.benchmarks.schedules --data-root=DATA

The network of configs/mnist.py:vdm on MNIST, batches of 64. Steps of all schedules take turns, so that the machine's
noise is the same for all; the table has medians.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from scorefield.commands.train.start import probabilities_of
from scorefield.configs import build
from scorefield.configs.greyscale import greyscale
from scorefield.likelihood import LevelDecoder
from scorefield.training import EMA, Batches, Model, Step, ToModelRange, TrainingState, run
from scorefield.training.adam import adam
from scorefield.training.data import mnist
from scorefield.training.objectives import elbo
from scorefield.training.times import Measured

SCHEDULES: dict[str, tuple[str, str]] = {
    "fixed, uniform log-SNR": ("frozen:low=-6.0,high=13.3", "log_snr"),
    "fixed, measured times": ("frozen:low=-6.0,high=13.3", "measured"),
    "learned ends, measured times": ("learned:interior=linear,low=-6.0,high=13.3", "measured"),
    "learned ends, monotone": ("learned:interior=monotone,low=-6.0,high=13.3", "stratified"),
    "learned ends, polynomial": ("learned:interior=polynomial,low=-6.0,high=13.3", "stratified"),
    "learned ends, bins": ("learned:interior=bins,low=-6.0,high=13.3", "stratified"),
}


def steps(dataset: Any, path: str, times: str, parameterisation: str, batch: int) -> Iterator[tuple[Step, ...]]:
    """A training on the bound, one step at a time."""
    torch.manual_seed(0)
    config = greyscale("mnist", "vdm")
    config.precondition = build.spec(build.PRECONDITIONS, parameterisation)
    if parameterisation == "levels":
        config.precondition.probabilities = probabilities_of(dataset, 0)
    sde, drawn = build.build(build.SDES, path), build.build(build.TIMES, times)
    model: Model = Model(build.denoiser(config, dataset.shape, None, sde), sde)
    remembered = drawn if isinstance(drawn, Measured) else None
    state = TrainingState(model, adam(model, 1e-3), EMA(model, 0.999), times=remembered)
    objective = elbo.objective(sde, state.optimizer, decoder=LevelDecoder(dataset.levels), times=drawn)
    batches = Batches(dataset, batch, transform=ToModelRange(dataset.levels, -1.0, 1.0, False, False))
    return run(state, [objective], batches, images=10**9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precondition", default="eps")
    args = parser.parse_args()
    dataset = mnist(args.data_root, "train")
    ways = {name: steps(dataset, *spec, args.precondition, args.batch) for name, spec in SCHEDULES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.steps + 2):  # the first two prepare
        for name, training in ways.items():
            began = time.perf_counter()
            next(training)
            if turn > 1:
                seconds[name].append(time.perf_counter() - began)
    first = next(iter(seconds.values()))
    print("| schedule | ms a step | ratio to the first, paired |\n|---|---|---|")
    for name, own in seconds.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(own, first, strict=True))
        print(f"| {name} | {1000 * statistics.median(own):.0f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
