"""Small runs that tests of what training shows watch."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import pytest
import torch
from torch import Generator, Tensor, nn

from scorefield.commands.data_facts import DataFacts
from scorefield.commands.run import Run
from scorefield.commands.train.log import Log
from scorefield.configs import build, digits
from scorefield.models import MLP, Denoiser
from scorefield.models.precondition import eps
from scorefield.sde_lib import VPSDE
from scorefield.training import EMA, Step, TrainingState, latest, load, save, train, weighting
from scorefield.training.data import digits as digits_data
from scorefield.training.monitor.loss_guard import LossGuard
from scorefield.training.objectives.dsm import batch_loss

BATCH, TOTAL = 16, 480


def configuration() -> ml_collections.ConfigDict:
    config = digits.get_config("vp")
    config.net = build.spec(build.NETWORKS, "mlp", width=16, blocks=1)
    config.sampling.steps = 2
    config.training.update(images=TOTAL, batch=BATCH, log_every=7)
    return config


def new_run(workdir: Path, config: ml_collections.ConfigDict | None = None) -> Run:
    workdir.mkdir(parents=True, exist_ok=True)
    return Run(workdir, config or configuration(), DataFacts.of(digits_data("train")), torch.device("cpu"))


def new_state(run: Run | None = None) -> TrainingState:
    torch.manual_seed(0)
    denoiser = run.new_denoiser() if run else Denoiser(MLP((4,), width=16, blocks=2), eps)
    nn.init.normal_(denoiser.net.head.weight, std=0.1)
    return TrainingState(denoiser, torch.optim.Adam(denoiser.parameters(), lr=1e-3), EMA(denoiser, [0.9, 0.5]))


def untrained_run(workdir: Path, config: ml_collections.ConfigDict | None = None) -> Path:
    """A run on disk, with a checkpoint of random weights."""
    run = new_run(workdir, config)
    run.save()
    save(workdir / "checkpoints", new_state(run))
    return workdir


def batches(shape: tuple[int, ...], start: int = 0, size: int = BATCH) -> Iterator[Tensor]:
    for position in itertools.count(start, size):
        yield torch.randn(size, *shape, generator=Generator().manual_seed(position))


def trained(run: Run, saves: tuple[int, ...] = (), until: int = TOTAL) -> list[Step]:
    """Train as the command does, from the newest checkpoint; killed after `until` images."""
    state, seen = new_state(run), []
    checkpoint = latest(run.workdir / "checkpoints")
    log_state = load(checkpoint, state)["log"] if checkpoint else {}
    log, loader = Log(run, state.images, state), batches(run.data.shape, state.images)
    steps = train(state.denoiser, run.sde, loader, images=TOTAL, state=state, accept=log.guard.accept)
    with log:
        log.load_state(log_state)
        for step in log.following(steps):
            seen.append(step)
            if step.images in saves:
                save(run.workdir / "checkpoints", state, extra={"log": log.state()})
            if step.images >= until:
                break
    return seen


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def watched(
    state: TrainingState, loader: Iterator[Tensor], folder: Path, steps: int = 60, **options: Any
) -> tuple[list[Step], str]:
    """The steps up to a bad one, that one included, and the message of its error."""
    weight = options.pop("weight", weighting.simple)

    def loss(denoiser: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch_loss(denoiser, VPSDE(), batch, weight)

    guard = LossGuard(VPSDE(), state.denoiser, loss=loss, folder=folder, **options)
    seen: list[Step] = []

    def accept(step: Step) -> Tensor:
        seen.append(step)
        return guard.accept(step)

    loop = train(
        state.denoiser,
        VPSDE(),
        loader,
        images=BATCH * steps,
        state=state,
        weight=weight,
        precision=options.get("precision", torch.float32),
        accept=accept,
    )
    with pytest.raises(ValueError, match=r"^step ") as caught:
        list(loop)
    return seen, str(caught.value)


def with_value(value: float, at: int, example: int) -> Iterator[Tensor]:
    for i, x in enumerate(batches((4,)), start=1):
        if i == at:
            x[example, 0] = value
        yield x
