"""What U-Nets cost: ours and those of score_sde_pytorch with the same weights, side by side.

python -m scorefield.benchmarks.networks_speed --peer=PATH     a checkout of score_sde_pytorch; --quick for a short run
python -m scorefield.benchmarks.networks_speed --before=PATH   an older checkout of ours: small networks, new and old

`ddpm` on VP and NCSN++ on VE, as published for CIFAR-10 but for their width of 64, on CPUs in float32. A training step
is forward, backward, clipping, Adam and a moving average, with dropout; the peer's are its own: torch's Adam as it
calls it, its average, its network with the resampling that it has for CPUs. Ours has the fused Adam. Every pair is
measured interleaved in one run; the ratio is the median of the pairs' ratios, with its quartiles.
"""

import argparse
import importlib
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from scorefield.models import UNet
from scorefield.models.checkpoints import score_sde
from scorefield.models.checkpoints.report import fitted
from scorefield.training.adam import adam
from scorefield.training.averages.ema import EMA

NETWORKS = {
    "ddpm": ("ddpm", "DDPM", "vp/ddpm/cifar10_continuous"),
    "NCSN++": ("ncsnpp", "NCSNpp", "ve/cifar10_ncsnpp_continuous"),
}
SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "digits, width 32": ((64, 1, 8, 8), {"width": 32, "multipliers": (1, 2), "blocks": 1}),
    "MNIST, width 16": ((64, 1, 28, 28), {"width": 16, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,)}),
    "MNIST, width 32": ((64, 1, 28, 28), {"width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,)}),
}
Work = Callable[[], object]


@contextmanager
def modules_of(root: Path, *names: str) -> Iterator[None]:
    """Imports of these packages come from another checkout, and leave no trace."""
    mine = {name: module for name, module in sys.modules.items() if name.split(".")[0] in names}
    for name in mine:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.split(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(mine)


def theirs(root: Path, name: str, width: int) -> tuple[nn.Module, Any]:
    """Their network in training mode, no weight of it zero, and the class of their moving average."""
    file, network, config = NETWORKS[name]
    configs = types.ModuleType("configs")
    configs.__path__ = [str(root / "configs")]
    compiled = mock.patch("torch.utils.cpp_extension.load")  # for GPUs, at import
    with modules_of(root, "models", "configs", "op", "sde_lib"), compiled:
        sys.modules["configs"] = configs
        settings = importlib.import_module(f"configs.{config.replace('/', '.')}").get_config()
        settings.model.nf = width
        net: nn.Module = getattr(importlib.import_module(f"models.{file}"), network)(settings)
        average = importlib.import_module("models.ema").ExponentialMovingAverage
    for parameter in net.parameters():
        if bool(parameter.detach().abs().max() < 1e-6):
            nn.init.normal_(parameter, std=0.02)
    return net, average


def ours(net: nn.Module, name: str, width: int) -> Any:
    state = net.state_dict()
    denoiser, report = fitted(score_sde.spec_of(state, config=NETWORKS[name][2], nf=width), state, "raw")
    assert report.fits, report
    return denoiser.net


def training(net: nn.Module, adam: torch.optim.Optimizer, average: Work, inputs: tuple[Tensor, Tensor]) -> Work:
    target = torch.randn_like(inputs[0])

    def step() -> None:
        adam.zero_grad()
        (net(*inputs) - target).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        average()

    return step


def our_training(net: nn.Module, inputs: tuple[Tensor, Tensor]) -> Work:
    ema = EMA(net)
    return training(net.train(), adam(net), lambda: ema.update(net), inputs)


def inference(net: nn.Module, inputs: tuple[Tensor, Tensor]) -> Work:
    return torch.no_grad()(lambda: net(*inputs))


def compared(what: str, images: int, first: Work, other: Work, rounds: int) -> None:
    """A row: images a second of both, and the median and quartiles of other / first in time."""
    pairs: list[tuple[float, float]] = []
    for i in range(rounds + 2):
        pair = {}
        for key, run in ((0, first), (1, other))[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            run()
            pair[key] = time.perf_counter() - start
        pairs.append((pair[0], pair[1]))
    a, b = (images / statistics.median(times) for times in zip(*pairs[2:], strict=True))
    low, middle, high = statistics.quantiles([b / a for a, b in pairs[2:]], n=4)
    print(f"| {what} | {a:.1f} | {b:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


def against_peer(root: Path, width: int, batch: int, rounds: int, compiled: bool) -> None:
    print("| what | ours, images/s | theirs | ratio | quartiles |\n|---|---|---|---|---|")
    for name in NETWORKS:
        torch.manual_seed(0)
        net, average_of = theirs(root, name, width)
        mine = ours(net, name, width)
        if compiled:
            mine.compile()
        x, level = torch.rand(batch, 3, 32, 32), torch.rand(batch) * 40 + 0.1
        log_level = level.log() if name == "NCSN++" else level
        scale = level[:, None, None, None] if name == "NCSN++" else 1.0
        net.eval(), mine.eval()
        with torch.no_grad():
            a, b = net(x, level) * scale, mine(x, log_level)
        difference = float((a - b).abs().max() / a.abs().max())
        assert difference < 3e-5, difference  # both round: either is 1e-5 from float64
        compared(f"{name}: inference", batch, inference(mine, (x, log_level)), inference(net, (x, level)), 2 * rounds)
        average = average_of(net.parameters(), 0.9999)
        adam = torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.9, 0.999), eps=1e-8)
        other = training(net.train(), adam, lambda net=net, of=average: of.update(net.parameters()), (x, level))  # type: ignore[misc]
        compared(f"{name}: training step", batch, our_training(mine, (x, log_level)), other, rounds)


def against_before(root: Path, rounds: int) -> None:
    with modules_of(root, "models", "sde_lib"):
        old = importlib.import_module("models").UNet
    print("| what | now, images/s | before | ratio | quartiles |\n|---|---|---|---|---|")
    for name, (shape, settings) in SMALL.items():
        inputs = torch.randn(shape), torch.rand(shape[0])
        nets = [network(shape[1], dropout=0.1, **settings) for network in (UNet, old)]
        runs = [inference(net.eval(), inputs) for net in nets]
        compared(f"{name}: inference", shape[0], runs[0], runs[1], 10 * rounds)
        runs = [our_training(net, inputs) for net in nets]
        compared(f"{name}: training step", shape[0], runs[0], runs[1], 4 * rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of score_sde_pytorch")
    parser.add_argument("--before", type=Path, help="an older checkout of this repository")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="ours under torch.compile")
    parser.add_argument("--quick", action="store_true", help="narrow, and few rounds")
    args = parser.parse_args()
    if args.peer is None and args.before is None:
        parser.error("expected --peer or --before, with a checkout to compare with")
    torch.set_num_threads(args.threads)
    rounds, width = (3, 32) if args.quick else (args.rounds, args.width)
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, {date.today()}\n")
    if args.peer is not None:
        against_peer(args.peer, width, args.batch, rounds, args.compile)
    if args.before is not None:
        against_before(args.before, rounds)


if __name__ == "__main__":
    main()
