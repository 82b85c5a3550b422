"""Train a denoiser by denoising score matching; run again, it goes on where it was."""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import Generator, nn
from tqdm import tqdm

from scorefield import training
from scorefield.commands.generate import grid
from scorefield.commands.interruption import Interrupted, graceful_stop
from scorefield.commands.run import DataFacts, Run, device_of
from scorefield.commands.train.log import Log
from scorefield.commands.train.resume import WorkdirLock, fork, origin, refuse_another, resume, write_origin
from scorefield.commands.train.settings import PRECISIONS, SNAPSHOTS, validate
from scorefield.configs import build
from scorefield.models.layers.blocks import compile_network
from scorefield.solvers import Schedule
from scorefield.training import DiskFullError, Step, TrainingState
from scorefield.training.adam import adam
from scorefield.training.data import Dataset
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.sharding import Sharding, whole
from scorefield.training.memory import keep_freed_memory

TIMEOUT = timedelta(hours=2)  # of a process that waits for the first one's pictures and checkpoints


def train(
    workdir: Path,
    config: ml_collections.ConfigDict,
    *,
    device: str | None = None,
    fork_from: str | None = None,
    ema: bool | None = None,
) -> dict[str, Any]:
    """Train the run of a configuration in `workdir`, from its newest whole checkpoint if it has one.

    Under torchrun the processes share every batch, which is training.batch all the same.

    Writes config.json, checkpoints/, snapshots/, metrics.jsonl, timing.jsonl, loss.png, loss_by_log_snr.png,
    samples/*.png and TensorBoard events.

    Args:
        workdir: of the run.
        config: its configuration.
        device: to train on.
        fork_from: another run, whose weights a new one begins with; fork.json tells which.
        ema: begin with the averaged weights of that run rather than the raw ones, as by default.

    Raises:
        ValueError: if the directory holds a run of another configuration, the loss stops being a number, or there is no
            room for a checkpoint and `training.on_full_disk` says to stop.
    """
    ranks = Ranks.of_environment(TIMEOUT)
    with ranks.failing_together():
        summary = _train(workdir, config, device, fork_from, ema)
        ranks.shutdown()
    return summary if ranks.first else {}


def _train(
    workdir: Path, config: ml_collections.ConfigDict, device: str | None, fork_from: str | None, ema: bool | None
) -> dict[str, Any]:
    if ema is not None and fork_from is None:
        raise ValueError("expected --ema or --noema in --mode=train with --fork_from alone: what to begin with")
    validate(config)
    dataset: Dataset = build.build(build.DATASETS, config.data, split="train")
    run = Run(workdir, config, DataFacts.of(dataset), device_of(device))
    keep_freed_memory()
    with WorkdirLock(workdir) as alone:
        return _trained(run, dataset, fork_from, ema, alone)


def _trained(run: Run, dataset: Dataset, fork_from: str | None, ema: bool | None, alone: WorkdirLock) -> dict[str, Any]:
    refuse_another(run)
    source = origin(run, fork_from)
    state, forked = _start(run, source, ema is not False)
    power = _power(run, state)
    held = resume(run, state, power)
    ranks, every = Ranks.current(), run.config.training
    if every.sharding == "fsdp" and ranks.world > 1:
        Sharding(state, *([power] if power else []))
    log = Log(run, state.images, state)
    steps = _steps(run, dataset, state, log)
    if ranks.first:
        if held is None and forked is not None:
            write_origin(run, forked)
        run.save()
        alone.lock()
    if held is None and forked is not None:
        save(run, state, power)
    if ranks.first:
        _introduce(run, dataset, state)
        if state.images >= every.images:
            print(f"{run.workdir} has been trained to its end: more takes a larger training.images")

    last_seen, began, before = state.images, time.perf_counter(), state.images
    with log, graceful_stop() as stop:
        log.hold((held or {}).get("log", {}))
        for step in log.following(steps):
            over = step.images >= every.images
            if power is not None:
                power.update(state.denoiser, step.images, step.images - last_seen)
                if over or _passed(every.snapshot_every, last_seen, step.images):
                    log.watch.settle()
                    _store(run, state, power)
            if asked := stop.agreed():
                place = save(run, state, power, log.held())
                raise Interrupted(asked, f"interrupted: saved {place}; the same command goes on from there")
            if _passed(every.sample_every, last_seen, step.images) and not over:
                log.pictures(state, lambda: stop.asked)
            if _passed(every.checkpoint_every, last_seen, step.images) and not over:
                _save_if_there_is_room(run, state, power, log.held())
            last_seen = step.images
        if state.images > before:
            save(run, state, power, log.held())
            if every.sample_every > 0:
                log.pictures(state, lambda: stop.asked)
    seconds = time.perf_counter() - began
    return {
        "images": state.images,
        "images_this_time": state.images - before,  # what the next two are about, and the loss is not
        "seconds": round(seconds, 1),
        "images_per_second": round((state.images - before) / seconds, 1),
        "loss": log.loss,
        "files": [
            str(file) for file in map(run.workdir.joinpath, ("checkpoints", "loss.png", "samples")) if file.exists()
        ],
    }


def save(run: Run, state: TrainingState, power: training.PowerEMA | None, held: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint of the run.

    Raises:
        ValueError: if there is no room for it.
    """
    settings, folder = run.config.training, run.workdir / "checkpoints"
    state, power = whole(state, power)
    try:
        return training.save(
            folder, state, settings.keep, keep_every=settings.keep_every, power=power, extra={"log": held or {}}
        )
    except DiskFullError as error:
        last = training.latest(folder)
        raise ValueError(f"{error.strerror}: {_left(last)}; make room, and give the same command again") from None


def _left(last: Path | None) -> str:
    return "there is none before it" if last is None else f"the last whole one is {last}"


def _save_if_there_is_room(
    run: Run, state: TrainingState, power: training.PowerEMA | None, held: dict[str, Any]
) -> None:
    try:
        save(run, state, power, held)
    except ValueError as error:
        if not isinstance(error.__context__, DiskFullError) or run.config.training.on_full_disk != "continue":
            raise
        tqdm.write(f"{error}; training goes on without", file=sys.stderr)


def _store(run: Run, state: TrainingState, power: training.PowerEMA) -> None:
    settings = run.config.training
    _, power = whole(state, power)
    if not Ranks.current().first:
        return
    try:
        power.store(run.workdir / "snapshots", state.images, SNAPSHOTS[settings.snapshot_dtype])
    except DiskFullError as error:
        if settings.on_full_disk != "continue":
            raise ValueError(f"{error.strerror}: make room, and give the same command again") from None
        tqdm.write(f"{error.strerror}: training goes on without", file=sys.stderr)


def _power(run: Run, state: TrainingState) -> training.PowerEMA | None:
    settings = run.config.training
    return training.PowerEMA(state.denoiser, settings.snapshot_lengths) if settings.snapshot_every > 0 else None


def _start(run: Run, source: Path | None, ema: bool) -> tuple[TrainingState, dict[str, Any] | None]:
    settings = run.config.training
    # All three, though torch alone is drawn from here: data and networks of users' own may draw from the others.
    torch.manual_seed(run.config.seed)
    random.seed(run.config.seed)
    np.random.seed(run.config.seed)
    Ranks.current().rows(settings.batch, settings.accumulate)  # or it is refused
    denoiser = run.new_denoiser()
    # Tried now, so that a mistake in it comes before any work.
    build.build(build.SOLVERS, run.config.sampling.solver)
    one = torch.zeros(1, *run.data.shape, device=run.device)
    ends = Schedule(run.sde, grid(run, run.config.sampling), one)[-1]
    try:
        with torch.no_grad():
            denoiser(one, ends.alpha, ends.sigma)
    except RuntimeError as error:
        raise ValueError(f"expected a network that takes data of shape {run.data.shape}: {error}") from error
    if Ranks.current().rank > 0:  # each its own dropout
        torch.manual_seed(int(np.random.SeedSequence([run.config.seed, 2, Ranks.current().rank]).generate_state(1)[0]))
    optimizer = adam(denoiser, settings.learning_rate, tuple(settings.betas), settings.adam_eps, settings.weight_decay)
    generator = Generator(run.device).manual_seed(run.config.seed)
    # Before the averages are made, which begin with the weights.
    begun = training.latest(run.workdir / "checkpoints") is not None
    forked = None if source is None or begun else fork(run, source, denoiser, ema)
    averages: training.EMA[nn.Module] = training.EMA(denoiser, (settings.ema, *settings.more_ema))
    return TrainingState(denoiser, optimizer, averages, generator), forked


def _introduce(run: Run, dataset: Dataset, state: TrainingState) -> None:
    parameters = sum(p.numel() for p in state.denoiser.parameters())
    kind = f"{dataset.levels} levels" if dataset.levels else "continuous"
    print(
        f"{run.device} ({torch.get_num_threads()} threads) | {run.config.net.name} of {parameters:,} parameters "
        f"predicts {run.config.precondition.name} along {run.config.sde.name} | {dataset.name}: {len(dataset):,} of "
        f"shape {dataset.shape}, {kind} | from {state.images:,} to {run.config.training.images:,} images"
    )


def _steps(run: Run, dataset: Dataset, state: TrainingState, log: Log) -> Iterator[Step]:
    settings, transform = run.config.training, run.config.transform
    batches = training.Batches(
        dataset,
        settings.batch,
        seed=run.config.seed,
        start=state.images,
        transform=training.ToModelRange(run.data.levels, run.low, run.high, transform.dequantise, transform.flip),
        labels=settings.labels,
        label_dropout=settings.label_dropout,
        device=run.device,
    )
    if settings.compile:
        compile_network(state.denoiser.get_submodule("net"), dynamic=False)
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
        precision=PRECISIONS[settings.precision],
        accumulate=settings.accumulate,
        recompute=settings.recompute,
        sound=log.watch.sound,
    )


def _schedule(settings: ml_collections.ConfigDict) -> Callable[[int], float]:
    def factor(images: int) -> float:
        rise = min(1.0, (images + settings.batch) / settings.warmup) if settings.warmup else 1.0
        fall = (1 + math.cos(math.pi * min(1.0, images / settings.images))) / 2 if settings.decay else 1.0
        return rise * fall

    return factor


def _passed(every: int, before: int, now: int) -> bool:
    return every > 0 and now // every > before // every
