"""Runs whose network is exact: a Gaussian for each class, of which everything is known."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.commands.data_facts import DataFacts
from scorefield.commands.run import Run, open_run
from scorefield.configs import build
from scorefield.configs.defaults import defaults
from scorefield.training.checkpoints.atomic import atomic_dir, write_tensors

SPREAD = 0.1
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, -2.0], [0.0, 0.0]])  # the last is of no class


class ClassGaussian(nn.Module):
    """E[x0 | x] on a variance-preserving path, where class k is N(MEANS[k], SPREAD^2 I)."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.means = nn.Parameter(MEANS.clone())

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        ratio = (4 * c_noise.double()).exp()[:, None]
        alpha = 1 / (1 + ratio**2).sqrt()
        means = self.means[torch.full((len(x),), 4) if label is None else label].double()
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + (ratio * alpha) ** 2)
        return (means + gain * (x - alpha * means)).to(x.dtype)


def labelled(count: int, classes: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) of these classes, in turn, and their labels."""
    label = np.array(classes)[np.arange(count) % len(classes)]
    noise = np.random.default_rng(seed).standard_normal((count, 2))
    return (MEANS.numpy()[label] + SPREAD * noise).astype(np.float32), label


def negative_log_density(x: np.ndarray, label: np.ndarray) -> float:
    """The mean of -log p(x | label), in nats/dim."""
    square = ((x - MEANS.numpy()[label]) / SPREAD) ** 2
    return float(0.5 * square.mean() + math.log(SPREAD) + 0.5 * math.log(2 * math.pi))


def class_run(
    workdir: Path, data: Path, *, dropout: float = 0.0, names: tuple[str, ...] = (), counts: tuple[int, ...] = (9,) * 4
) -> Run:
    """A run of four classes with a checkpoint, on the arrays of a file."""
    config = defaults()
    config.data = build.spec(build.DATASETS, "array", path=str(data))
    config.net = build.spec(build.NETWORKS, "class_gaussians.ClassGaussian")
    config.sde = build.spec(build.SDES, "vp")
    config.precondition = build.spec(build.PRECONDITIONS, "x0")
    config.training.update(labels=True, label_dropout=dropout)
    facts: dict[str, Any] = {"class_names": names, "class_counts": counts}
    run = Run(workdir, config, DataFacts("points", (2,), None, 4, "", **facts), torch.device("cpu"))
    run.save()
    with atomic_dir(workdir / "checkpoints" / f"{0:010d}") as part:
        for name in ("ema", "model"):
            write_tensors(part / f"{name}.safetensors", run.new_model().state_dict())
    return open_run(workdir, "cpu")
