"""What training costs on this machine: images a second by switch, and the share of its matrix-multiply peak.

python -m benchmarks.training --peer=PATH              a checkout of score_sde_pytorch, measured interleaved

A step is the whole of it: a batch of CIFAR-10's shape from memory, flipped and scaled, forward, backward, clipping,
Adam and the moving average, by `training.train` here and by their losses.get_step_fn there. Ratios are medians over
rounds.
"""

import argparse
import importlib
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks_speed import NETWORKS, modules_of, ours
from models import Denoiser
from models.importers import score_sde
from training import EMA, Batches, Scaled, TrainingState, train
from training.data import Dataset
from training.loop import adam

SWITCHES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": torch.bfloat16},
    "accumulate=2": {"accumulate": 2},
    "recompute": {"recompute": True},
}
Step = Callable[[], object]


def dataset() -> Dataset:
    """Random images of CIFAR-10's shape."""
    x = np.random.default_rng(0).integers(0, 256, (4096, 3, 32, 32)).astype(np.uint8)
    return Dataset(name="random", split="train", x=x, label=None, levels=256, num_classes=None)


def our_step(net: nn.Module, name: str, width: int, batch: int, **switches: Any) -> Step:
    """One step at a call, of our own loop."""
    recipe = score_sde.recipe({}, config=NETWORKS[name][2], nf=width)
    denoiser = Denoiser(ours(net, name, width), recipe.precondition)
    state = TrainingState(denoiser, adam(denoiser, 2e-4, (0.9, 0.999)), EMA(denoiser, 0.9999))
    batches = Batches(dataset(), batch, transform=Scaled(256, recipe.low, recipe.high, False, True))
    steps: Iterator[Any] = train(denoiser, recipe.sde, batches, images=10**12, state=state, **switches)
    return lambda: next(steps)


def their_step(root: Path, name: str, width: int, batch: int) -> tuple[nn.Module, Step]:
    """Their network, and one step of their training at a call."""
    file, network, config = NETWORKS[name]
    configs = types.ModuleType("configs")
    configs.__path__ = [str(root / "configs")]
    with (
        modules_of(root, "models", "configs", "op", "sde_lib", "losses"),
        mock.patch("torch.utils.cpp_extension.load"),
    ):
        sys.modules["configs"] = configs
        settings = importlib.import_module(f"configs.{config.replace('/', '.')}").get_config()
        settings.model.nf, settings.device = width, torch.device("cpu")
        net = getattr(importlib.import_module(f"models.{file}"), network)(settings)
        average = importlib.import_module("models.ema").ExponentialMovingAverage(net.parameters(), 0.9999)
        losses, paths = importlib.import_module("losses"), importlib.import_module("sde_lib")
        sde = paths.VESDE(N=1000) if "ve/" in config else paths.VPSDE(N=1000)
        step_of = losses.get_step_fn(
            sde, train=True, optimize_fn=losses.optimization_manager(settings), continuous=True, reduce_mean=True
        )
    for parameter in net.parameters():
        if bool(parameter.detach().abs().max() < 1e-6):
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.9, 0.999), eps=1e-8)
    state = {"optimizer": optimizer, "model": net, "ema": average, "step": 0}
    x, low = torch.from_numpy(dataset().x), -1.0 if settings.data.centered else 0.0
    generator = torch.Generator().manual_seed(0)

    def step() -> object:
        rows = torch.randint(len(x), (batch,), generator=generator)
        images = x[rows].float() / 255  # as tensorflow_datasets gives them
        flipped = torch.rand(batch, generator=generator) < 0.5
        images[flipped] = images[flipped].flip(-1)
        return step_of(state, images * (1 - low) + low)

    return net, step


def seconds(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """The time of each step of each kind, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= 2:
                found[name].append(time.perf_counter() - start)
    return found


def peak(threads: int) -> float:
    """Floating-point operations a second of a large float32 product, the best of some."""
    a = torch.randn(2048, 2048)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of score_sde_pytorch")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    best = peak(args.threads)
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, {date.today()}")
    print(f"float32 matrix products: {best / 1e9:.0f} GFLOP/s\n")
    print("| what | images/s | over the peer's | quartiles | of the peak |\n|---|---|---|---|---|")
    for name in NETWORKS:
        torch.manual_seed(0)
        net, peer = their_step(args.peer, name, args.width, args.batch)
        steps = {kind: our_step(net, name, args.width, args.batch, **switch) for kind, switch in SWITCHES.items()}
        counter = FlopCounterMode(display=False)
        with counter:
            steps["float32"]()
        found = seconds({**steps, "peer": peer}, args.rounds)
        for kind, times in found.items():
            ratios = [b / a for a, b in zip(times, found["peer"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rate = 1 / statistics.median(times)
            share = f"{counter.get_total_flops() * rate / best:.2f}" if kind == "float32" else ""
            print(
                f"| {name}: {kind} | {args.batch * rate:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | {share} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
