"""Train a denoiser by denoising score matching; run again, it goes on where it was."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
import torch
from torch import Generator, Tensor
from tqdm import tqdm

import training
from commands.generate import grid
from commands.run import DataFacts, Run, device_of, open_run
from commands.train_log import Log
from configs import build
from solvers import Schedule
from training import Step, TrainingState
from training.data import Dataset

# What may change when a run goes on: where its data lies, and what it shows. (A length that the learning rate's fall
# does not depend on may, too.)
FREE = (
    "config.data.root",
    "config.data.path",
    "config.data.download",
    "config.sampling.",
    "config.training.log_every",
    "config.training.sample_every",
    "config.training.checkpoint_every",
)


def train(workdir: Path, config: ml_collections.ConfigDict, *, device: str | None = None) -> dict[str, Any]:
    """Train the run of a configuration in `workdir`, from its newest checkpoint if it has one.

    Writes config.json, checkpoints/, metrics.jsonl, loss.png, samples/*.png and TensorBoard events.

    Raises:
        ValueError: if the directory holds a run of another configuration, or the loss stops being a number.
    """
    dataset: Dataset = build.build(build.DATASETS, config.data, split="train")
    run = Run(workdir, config, DataFacts.of(dataset), device_of(device))
    state = _start(run)
    _refuse_another(run)
    checkpoint = training.latest(workdir / "checkpoints")
    if checkpoint is not None:
        training.load(checkpoint, state)
    steps = _steps(run, dataset, state)
    run.save()
    _introduce(run, dataset, state)

    last_seen, began, before = state.images, time.perf_counter(), state.images
    with Log(run, before) as log, _between_steps() as stop:
        try:
            for step in log.following(steps):
                if stop.asked:
                    raise _InterruptedBetweenSteps
                every = config.training
                if _passed(every.sample_every, last_seen, step.images) and step.images < every.images:
                    log.pictures(state)
                if _passed(every.checkpoint_every, last_seen, step.images) and step.images < every.images:
                    training.save(workdir / "checkpoints", state)
                last_seen = step.images
        except _InterruptedBetweenSteps:
            place = training.save(workdir / "checkpoints", state)
            tqdm.write(f"interrupted: saved {place}; the same command goes on from there")
            raise
        if state.images > before:
            training.save(workdir / "checkpoints", state)
            log.pictures(state)
    seconds = time.perf_counter() - began
    return {
        "images": state.images,
        "seconds": round(seconds, 1),
        "images_per_second": round((state.images - before) / seconds, 1),
        "loss": log.loss,
        "files": [str(path) for path in (workdir / "checkpoints", workdir / "loss.png", workdir / "samples")],
    }


class _InterruptedBetweenSteps(KeyboardInterrupt):
    """Where the state is whole, so that saving it is right."""


@dataclass
class _Stop:
    asked: bool = False


@contextmanager
def _between_steps() -> Iterator[_Stop]:
    """Ctrl-C and a polite kill wait for the step to end, so that what is saved is whole; asked twice, they do not."""
    stop = _Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(run: Run) -> TrainingState:
    settings = run.config.training
    torch.manual_seed(run.config.seed)
    if settings.log_every < 1:
        raise ValueError(f"expected training.log_every to be at least 1, got {settings.log_every}")
    denoiser = run.new_denoiser()
    # Tried now, so that a mistake in it comes before any work.
    build.build(build.SOLVERS, run.config.sampling.solver)
    one = torch.zeros(1, *run.data.shape, device=run.device)
    ends = Schedule(run.sde, grid(run, run.config.sampling), one)[-1]
    with torch.no_grad():
        denoiser(one, ends.alpha, ends.sigma)
    adam = torch.optim.Adam(denoiser.parameters(), lr=settings.learning_rate, betas=tuple(settings.betas))
    generator = Generator(run.device).manual_seed(run.config.seed)
    return TrainingState(denoiser, adam, training.EMA(denoiser, settings.ema), generator)


def _refuse_another(run: Run) -> None:
    """A directory with another run in it is left alone."""
    if run.workdir.exists() and not run.workdir.is_dir():
        raise ValueError(f"expected --workdir to be a folder, got the file {run.workdir}: choose another")
    if not (run.workdir / "config.json").is_file():
        return
    there, here = (_flat(r.described()) for r in (open_run(run.workdir), run))
    odd = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    free = FREE if run.config.training.decay else (*FREE, "config.training.images")
    odd = [key for key in odd if not key.startswith(free)]
    if odd:
        key = odd[0]
        raise ValueError(
            f"{run.workdir} holds a run of another configuration: {key} is {there.get(key)!r} there and "
            f"{here.get(key)!r} here ({len(odd)} differ): choose another --workdir, or give its own configuration to "
            "go on with it"
        )


def _introduce(run: Run, dataset: Dataset, state: TrainingState) -> None:
    parameters = sum(p.numel() for p in state.denoiser.parameters())
    kind = f"{dataset.levels} levels" if dataset.levels else "continuous"
    print(
        f"{run.device} ({torch.get_num_threads()} threads) | {run.config.net.name} of {parameters:,} parameters "
        f"predicts {run.config.precondition.name} along {run.config.sde.name} | {dataset.name}: {len(dataset):,} of "
        f"shape {dataset.shape}, {kind} | from {state.images:,} to {run.config.training.images:,} images"
    )


def _steps(run: Run, dataset: Dataset, state: TrainingState) -> Iterator[Step]:
    settings = run.config.training
    batches = training.Batches(
        dataset,
        settings.batch,
        seed=run.config.seed,
        start=state.images,
        transform=partial(_transform, run),
        labels=settings.labels,
        label_dropout=settings.label_dropout,
    )
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if settings.precision not in precisions:
        raise ValueError(
            f"expected training.precision to be one of {', '.join(precisions)}, got {settings.precision!r}"
        )
    return training.train(
        state.denoiser,
        run.sde,
        batches,
        images=settings.images,
        weight=build.build(build.WEIGHTINGS, settings.weight),
        times=build.build(build.TIMES, settings.times),
        state=state,
        schedule=_schedule(settings),
        clip=settings.clip or None,
        precision=precisions[settings.precision],
    )


def _transform(run: Run, stored: Tensor, generator: Generator) -> Tensor:
    def uniform(k: Tensor) -> Tensor:
        return torch.rand(k.shape, generator=generator) if run.config.transform.dequantise else torch.full_like(k, 0.5)

    x0, _ = run.to_model(stored, uniform=uniform)
    if run.config.transform.flip:
        flipped = torch.rand(len(x0), generator=generator) < 0.5
        x0[flipped] = x0[flipped].flip(-1)
    return x0


def _schedule(settings: ml_collections.ConfigDict) -> Callable[[int], float]:
    def factor(images: int) -> float:
        rise = min(1.0, (images + settings.batch) / settings.warmup) if settings.warmup else 1.0
        fall = (1 + math.cos(math.pi * min(1.0, images / settings.images))) / 2 if settings.decay else 1.0
        return rise * fall

    return factor


def _passed(every: int, before: int, now: int) -> bool:
    return every > 0 and now // every > before // every


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
