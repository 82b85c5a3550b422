"""Peak memory of a training step against a loop in plain PyTorch, and resident memory over many steps.

python -m scorefield.benchmarks.memory                 every setting in a separate process, on the CPU
python -m scorefield.benchmarks.memory flat 2000       resident memory over 2000 steps of a small network
"""

import argparse
import copy
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models import Denoiser, UNet
from scorefield.models.precondition import eps
from scorefield.sde_lib import VPSDE
from scorefield.training import EMA, TrainingState, train

STATM, PAGE = Path("/proc/self/statm"), resource.getpagesize()
WAYS: dict[str, dict[str, Any]] = {
    "accumulate=4": {"accumulate": 4},
    "recompute": {"recompute": True},
    "recompute, accumulate=4": {"recompute": True, "accumulate": 4},
}


def resident() -> float:
    """Resident memory of this process, MiB."""
    return int(STATM.read_text().split()[1]) * PAGE / 2**20


def highest() -> float:
    """The largest resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def denoiser(width: int) -> Denoiser:
    return Denoiser(UNet(3, width=width, multipliers=(1, 2, 2), blocks=2, attention=(1,)), eps)


def batches(size: int) -> Iterator[Tensor]:
    while True:
        yield torch.randn(size, 3, 32, 32)


def plain(steps: int, width: int, size: int) -> None:
    """The minimum: the same network, Adam, clipping and an average."""
    model, sde = denoiser(width), VPSDE()
    average = copy.deepcopy(model).requires_grad_(False)
    adam = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    weights: list[Tensor] = list(model.parameters())
    averages: list[Tensor] = list(average.parameters())
    for x0, _ in zip(batches(size), range(steps), strict=False):
        t, noise = torch.rand(size), torch.randn_like(x0)
        alpha, sigma = (each.float()[:, None, None, None] for each in sde.scales(t))
        loss = (model.net(alpha * x0 + sigma * noise, t) - noise).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1e-4)


def ours(steps: int, width: int, size: int, **settings: Any) -> None:
    model = denoiser(width)
    state = TrainingState(model, ema=EMA(model))
    for _ in train(model, VPSDE(), batches(size), images=steps * size, state=state, **settings):
        pass


def flat(steps: int) -> list[float]:
    """Resident memory in MiB, ten times during training."""
    torch.manual_seed(0)
    model = Denoiser(UNet(3, width=8, multipliers=(1, 2), blocks=1), eps)
    loader = (torch.randn(8, 3, 8, 8) for _ in iter(int, 1))
    steps_taken = train(model, VPSDE(), loader, images=steps * 8)
    return [resident() for step in steps_taken if step.step % (steps // 10) == 0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="all")
    parser.add_argument("steps", nargs="?", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    if args.what == "flat":
        print(" ".join(f"{each:.1f}" for each in flat(args.steps)), "MiB")
    elif args.what == "all":
        options = [str(args.steps), f"--width={args.width}", f"--batch={args.batch}"]
        peaks = {way: _measured(way, options) for way in ("plain", "train", *WAYS)}
        for way, peak in peaks.items():
            print(f"{way:<28} {peak:8.1f} MiB  {peak / peaks['plain']:.3f} of plain")
    else:
        before = highest()
        loop = plain if args.what == "plain" else ours
        loop(args.steps, args.width, args.batch, **WAYS.get(args.what, {}))
        print(highest() - before)


def _measured(way: str, options: list[str]) -> float:
    command = [sys.executable, "-m", "scorefield.benchmarks.memory", way, *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
