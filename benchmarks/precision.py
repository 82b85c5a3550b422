"""The loss in bfloat16 and with torch.compile against float32.

python -m scorefield.benchmarks.precision --images=60000

The U-Net of configs/digits.py on the digits, from the same weights with the same batches, times, noise and dropout. A
float32 run with another seed shows the effect of chance. The table has the loss by quarters of the run.
"""

import argparse
from typing import Any

import torch

from scorefield.configs import build, digits
from scorefield.training import EMA, Batches, ToModelRange, TrainingState, train
from scorefield.training.adam import adam
from scorefield.training.data import digits as digits_data

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, another seed": {"seed": 1},
    "float32, compile": {"compiled": True},
    "bfloat16": {"precision": torch.bfloat16},
    "bfloat16, compile": {"precision": torch.bfloat16, "compiled": True},
}


def losses(images: int, batch: int, *, compiled: bool = False, seed: int = 0, **switches: Any) -> torch.Tensor:
    """The loss of each step."""
    torch.manual_seed(0)
    config, dataset = digits.get_config("vp"), digits_data("train")
    denoiser = build.denoiser(config, dataset.shape, None)
    if compiled:
        assert isinstance(denoiser.net, torch.nn.Module)
        denoiser.net.compile()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    state = TrainingState(denoiser, adam(denoiser, 2e-4), EMA(denoiser, 0.999), generator)
    batches = Batches(dataset, batch, seed=seed, transform=ToModelRange(dataset.levels, -1.0, 1.0, True, False))
    steps = train(denoiser, build.build(build.SDES, config.sde), batches, images=images, state=state, **switches)
    return torch.stack([step.loss for step in steps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    print("| loss, by quarters | 1 | 2 | 3 | 4 | step by step, from float32 |\n|---|---|---|---|---|---|")
    first = None
    for name, way in WAYS.items():
        curve = losses(args.images, args.batch, **way)
        first = curve if first is None else first
        quarters = " | ".join(f"{float(part.mean()):.5f}" for part in curve.chunk(4))
        apart = (curve / first - 1).abs().mean()
        print(f"| {name} | {quarters} | {100 * float(apart):.2f}% |", flush=True)


if __name__ == "__main__":
    main()
