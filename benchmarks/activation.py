"""What a training step costs: the networks of this checkout against those of an older one.

python -m scorefield.benchmarks.activation --before=PATH

DDPM's U-Net and NCSN++ of score_sde_pytorch at width 64, with dropout 0.1, in float32 and in bfloat16. A step is
forward, backward, clipping and Adam. Each checkout runs in its own process. The two take their steps in turn, and
the order changes from pair to pair. Times are of the processor, so that other work on the machine matters less.
"""

import argparse
import importlib
import multiprocessing
import platform
import statistics
import sys
import time
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("UNet", {"attention_up": "last", "frequencies": "timesteps", "smallest_group": 1}),
    "NCSN++": ("NCSNpp", {}),
}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
HERE = Path(__file__).resolve().parents[1]


def models_of(root: Path) -> Any:
    """The package of networks of a checkout, whose root is the package scorefield or, before that, the import path."""
    package = (root / "__init__.py").is_file()
    sys.path.insert(0, str(root.parent if package else root))
    return importlib.import_module("scorefield.models" if package else "models")


def serve(link: Connection, root: Path, name: str, dtype: torch.dtype | None, args: argparse.Namespace) -> None:
    """A checkout's process: for every question, the seconds of a training step."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    kind, settings = NETWORKS[name]
    net: nn.Module = getattr(models_of(root), kind)(3, args.width, dropout=0.1, **settings)
    adam = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    x, c_noise = torch.rand(args.batch, 3, 32, 32), torch.rand(args.batch)
    while link.recv():
        start = time.process_time()
        adam.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = net(x, c_noise)
        (output.float() - x).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        link.send(time.process_time() - start)


def pairs(name: str, dtype: torch.dtype | None, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of this checkout's steps and of the older one's, taken in turn."""
    context, links = multiprocessing.get_context("spawn"), []
    for root in (HERE, args.before.resolve()):
        link, there = context.Pipe()
        context.Process(target=serve, args=(there, root, name, dtype, args), daemon=True).start()
        links.append(link)
    found = []
    for i in range(args.warm + args.rounds):
        pair = [0.0, 0.0]
        for k in (0, 1) if i % 2 else (1, 0):
            links[k].send(True)
            pair[k] = links[k].recv()
        found.append((pair[0], pair[1]))
    for link in links:
        link.send(False)
    return found[args.warm :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="an older checkout of this repository")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warm", type=int, default=2, help="pairs that are not counted")
    parser.add_argument("--network", choices=NETWORKS, help="only this one")
    parser.add_argument("--dtype", choices=DTYPES, help="only this one")
    args = parser.parse_args()
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, {date.today()}\n")
    print("| step | now, ms | before, ms | before / now | quartiles |\n|---|---|---|---|---|")
    for name in [args.network] if args.network else NETWORKS:
        for kind in [args.dtype] if args.dtype else DTYPES:
            found = pairs(name, DTYPES[kind], args)
            now, before = (1000 * statistics.median(times) for times in zip(*found, strict=True))
            low, middle, high = statistics.quantiles([b / a for a, b in found], n=4)
            row = f"{name}, {kind} | {now:.0f} | {before:.0f} | {middle:.2f} | {low:.2f} to {high:.2f}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
