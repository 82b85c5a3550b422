"""What training costs on this machine: images a second by switch, and the share of its matrix-multiply peak.

python -m scorefield.benchmarks.training --peer=PATH              a checkout of score_sde_pytorch, measured interleaved

A step is everything: a batch of CIFAR-10's shape from memory, flipped and scaled, forward, backward, clipping, Adam
and the moving average, by `training.train` here and by their losses.get_step_fn there. Each kind runs in its own
process, as a user would run it. They take their steps in turn, each followed by one of the peer's. Ratios are medians
over such pairs. "Outside" is the time of a step before the network is called and after the backward pass.
"""

import argparse
import importlib
import multiprocessing
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scorefield.benchmarks.networks_speed import NETWORKS, modules_of, ours
from scorefield.models import Denoiser
from scorefield.models.checkpoints import score_sde
from scorefield.training import EMA, Batches, ToModelRange, TrainingState, train
from scorefield.training.adam import adam
from scorefield.training.data import Dataset

SWITCHES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, compile": {"compiled": True},
    "bfloat16": {"precision": torch.bfloat16},
    "bfloat16, compile": {"precision": torch.bfloat16, "compiled": True},
    "accumulate=2": {"accumulate": 2},
    "recompute": {"recompute": True},
}
PEER = "peer"
WARM = 8  # after which gradients are seldom clipped
Step = Callable[[], object]


def dataset() -> Dataset:
    """Random images of CIFAR-10's shape."""
    x = np.random.default_rng(0).integers(0, 256, (4096, 3, 32, 32)).astype(np.uint8)
    return Dataset(name="random", split="train", x=x, label=None, levels=256, num_classes=None)


def our_step(
    theirs: nn.Module, name: str, width: int, batch: int, compiled: bool = False, **switches: Any
) -> tuple[nn.Module, Step]:
    """Our network with their weights, and one step at a call of our own loop."""
    spec = score_sde.spec_of({}, config=NETWORKS[name][2], nf=width)
    net = ours(theirs, name, width)
    if compiled:
        net.compile()
    denoiser = Denoiser(net, spec.precondition)
    state = TrainingState(denoiser, adam(denoiser, 2e-4, (0.9, 0.999)), EMA(denoiser, 0.9999))
    batches = Batches(dataset(), batch, transform=ToModelRange(256, spec.low, spec.high, False, True))
    steps: Iterator[Any] = train(denoiser, spec.sde, batches, images=10**12, state=state, **switches)
    return net, lambda: next(steps)


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


def serve(link: Connection, args: argparse.Namespace, name: str, kind: str) -> None:
    """A kind's process: what it computes for an image, then for every question the seconds of a step."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net, step = their_step(args.peer, name, args.width, args.batch)
    if kind != PEER:
        net, step = our_step(net, name, args.width, args.batch, **SWITCHES[kind])
    marks: list[float] = []
    net.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
    backward = torch.Tensor.backward

    def marked(*args: Any, **kwargs: Any) -> None:
        backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        marks.append(time.perf_counter())

    with mock.patch.object(torch.Tensor, "backward", marked):
        counter = FlopCounterMode(display=False)
        with counter:
            step()
        link.send(counter.get_total_flops() / args.batch)
        while link.recv():
            marks.clear()
            start = time.perf_counter()
            step()
            whole = time.perf_counter() - start
            link.send((whole, whole - (marks[-1] - marks[0])))


class Times(NamedTuple):
    """Of a kind's steps, in seconds: whole, outside of forward and backward, and the peer's right after each."""

    whole: list[float]
    outside: list[float]
    peers: list[float]


def measure(args: argparse.Namespace, name: str) -> tuple[dict[str, Times], float]:
    """The times of each kind's steps, taken in turn, each with one of the peer's; and operations for an image."""
    context, links, flops = multiprocessing.get_context("spawn"), {}, {}
    for kind in (*SWITCHES, PEER):
        links[kind], there = context.Pipe()
        context.Process(target=serve, args=(there, args, name, kind), daemon=True).start()
        flops[kind] = links[kind].recv()

    def step(kind: str) -> tuple[float, float]:
        links[kind].send(True)
        taken: tuple[float, float] = links[kind].recv()
        return taken

    found = {kind: Times([], [], []) for kind in links}
    for i in range(WARM + args.rounds):
        for kind, times in found.items():
            taken, peers = step(kind), step(PEER)
            if i >= WARM:
                times.whole.append(taken[0])
                times.outside.append(taken[1])
                times.peers.append(peers[0])
    for link in links.values():
        link.send(False)
    return found, flops["float32"]


def peak() -> float:
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
    best = peak()
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, {date.today()}")
    print(f"float32 matrix products: {best / 1e9:.0f} GFLOP/s\n")
    print("| what | images/s | over the peer's | quartiles | outside, ms | of the peak |\n|---|---|---|---|---|---|")
    for name in NETWORKS:
        found, flops = measure(args, name)
        for kind, times in found.items():
            low, middle, high = statistics.quantiles(
                [b / a for a, b in zip(times.whole, times.peers, strict=True)], n=4
            )
            rate = args.batch / statistics.median(times.whole)
            share = f"{flops * rate / best:.2f}" if kind.startswith("float32") else ""
            beside = 1000 * statistics.median(times.outside)
            print(
                f"| {name}: {kind} | {rate:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | {beside:.0f} | {share} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
