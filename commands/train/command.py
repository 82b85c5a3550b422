"""Train a denoiser by denoising score matching; the same command resumes an interrupted run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import torch

from scorefield import training
from scorefield.commands.data_facts import DataFacts
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.run import Run, device_of
from scorefield.commands.train.batches import batches_of
from scorefield.commands.train.fork import origin, write_origin
from scorefield.commands.train.log import Log
from scorefield.commands.train.objective import Loss
from scorefield.commands.train.settings import validate
from scorefield.commands.train.start import open_data, start
from scorefield.commands.training.lock import WorkdirLock
from scorefield.commands.training.loop import TIMEOUT, Due, follow
from scorefield.commands.training.resume import refuse_another, resume
from scorefield.commands.training.schedule import schedule_of
from scorefield.commands.training.session import Session
from scorefield.commands.training.settings import PRECISIONS
from scorefield.configs import build
from scorefield.configs.defaults import defaults
from scorefield.training import Ranks, Step
from scorefield.training.data import Dataset


def train(
    workdir: Path,
    config: ml_collections.ConfigDict,
    *,
    device: str | None = None,
    fork_from: str | None = None,
    checkpoint: str | None = None,
    ema: bool | None = None,
) -> dict[str, Any]:
    """Train the run of a configuration in `workdir`, from its newest valid checkpoint if it has one.

    Under torchrun the processes share every batch; training.batch is the batch of all processes together.

    Writes config.json, checkpoints/, snapshots/, metrics.jsonl, timing.jsonl, loss.png, loss_by_log_snr.png,
    samples/*.png and TensorBoard events.

    Args:
        workdir: of the run.
        config: its configuration.
        device: to train on.
        fork_from: another run, whose weights a new one starts with; fork.json records it.
        checkpoint: of that run, see `find_checkpoint`.
        ema: start with the averaged weights of that run (the default) or with the raw ones.

    Raises:
        ValueError: if the directory holds a run of another configuration, the loss is not finite, or there is no room
            for a checkpoint and `training.on_full_disk` is "stop".
    """
    ranks = Ranks.of_environment(TIMEOUT)
    with ranks.failing_together():
        summary = _train(workdir, config, device, fork_from, checkpoint, ema)
        ranks.shutdown()
    return summary if ranks.first else {}


def _train(
    workdir: Path,
    config: ml_collections.ConfigDict,
    device: str | None,
    fork_from: str | None,
    checkpoint: str | None,
    ema: bool | None,
) -> dict[str, Any]:
    if build.is_autoencoder(config):
        raise ValueError(
            "expected the configuration of a denoiser, as --config=digits:vp, got one of an autoencoder: train that "
            "with --mode=train_autoencoder"
        )
    if (ema is not None or checkpoint is not None) and fork_from is None:
        flag = "--ema or --noema" if checkpoint is None else "--checkpoint"
        raise ValueError(f"expected {flag} in --mode=train only with --fork_from, whose weights it selects")
    settings = defaults().training.to_dict() | config.training.to_dict()  # complete, as those of a saved run
    config = ml_collections.ConfigDict(build.modern_config(config.to_dict() | {"training": settings}))
    validate(config)
    dataset, chosen = open_data(config, workdir)
    if config.training.labels and dataset.label is None:
        raise ValueError(
            f"expected labels in {dataset.name}, because training.labels is True, got none: leave it False, or give "
            "the images classes (docs/cli.md)"
        )
    run = Run(workdir, config, DataFacts.of(dataset), device_of(device))
    with WorkdirLock(workdir) as lock:
        refuse_another(run, defaults())
        session, loss, forked = start(run, origin(run, fork_from), ema is not False, checkpoint)
        loaded = resume(session)
        if config.training.sharding == "fsdp" and Ranks.current().world > 1:
            session.shard()
        if loaded is not None:
            forked = None
        if Ranks.current().first:
            if forked is not None:
                write_origin(run, forked)
            run.save()
            lock.lock()
        if forked is not None:
            session.save()
        _introduce(session, loss, dataset, chosen)
        log = Log(run, session.state.images, session.state, loss)
        return _run(session, loss, dataset, log, (loaded or {}).get("log", {}))


def _run(session: Session, loss: Loss, dataset: Dataset, log: Log, log_state: dict[str, Any]) -> dict[str, Any]:
    """Take the steps, with snapshots where they are due."""
    run, state, seen = session.run, session.state, session.state.images

    def on_step(step: Step, due: Due) -> None:
        nonlocal seen
        if session.power is not None:
            session.power.update(state.model, step.images, step.images - seen)
            if due(run.config.training.snapshot_every):
                log.guard.settle()
                session.store_snapshot()
        seen = step.images

    summary = follow(session, log, _steps(session, loss, dataset, log), log_state, on_step)
    files = (run.workdir / name for name in ("checkpoints", "loss.png", "samples"))
    return summary | {"loss": log.loss, "files": [str(file) for file in files if file.exists()]}


def _introduce(session: Session, loss: Loss, dataset: Dataset, chosen: dict[str, Any]) -> None:
    """Print what is trained, and the settings that were chosen by the data."""
    run, state, total = session.run, session.state, session.run.config.training.images
    if not Ranks.current().first:
        return
    parameters = sum(p.numel() for p in state.denoiser.parameters())
    kind = f"{dataset.levels} levels" if dataset.levels else "continuous"
    codes = "" if run.autoencoder is None else f", as codes of shape {run.shape}"
    print(
        f"{run.device} ({torch.get_num_threads()} threads) | {run.config.net.name} of {parameters:,} parameters "
        f"predicts {run.config.precondition.name} along {run.config.sde.name}, trained by "
        f"{run.config.training.optimizer} at {run.config.training.learning_rate:g} | {dataset.name}: "
        f"{len(dataset):,} of shape {dataset.shape}, {kind}{codes} | from {state.images:,} to {total:,} images",
        flush=True,
    )
    if run.autoencoder is not None and run.autoencoder.measured is None and run.autoencoder.scale == (1.0,):
        on_stderr("the codes of this autoencoder are not scaled: --mode=codes measures their shift and scale")
    if loss.advice:
        on_stderr(loss.advice)
    empty = (run.num_classes or 0) - len(run.classes)
    if empty:
        on_stderr(f"{empty} of {run.num_classes} classes have no example: they are never sampled")
    if chosen:
        words = ", ".join(f"{key}={value}".replace(" ", "") for key, value in chosen.items())
        print(f"chosen by the data: {words} | others by --config.KEY=VALUE", flush=True)
    if state.images == 0 and dataset.num_classes and run.num_classes is None:
        print(
            f"{dataset.name}: its {dataset.num_classes} classes are not used: --config.training.labels=true uses them"
        )
    for note in dataset.notes:
        print(f"{dataset.name}: {note}")
    if state.images >= total:
        longer = "start another with --fork_from" if run.config.training.decay else "set a larger training.images"
        print(f"{run.workdir} has been trained to its end: to continue, {longer}")


def _steps(session: Session, loss: Loss, dataset: Dataset, log: Log) -> Iterator[Step]:
    run, state = session.run, session.state
    settings = run.config.training
    batches = batches_of(run, dataset, state.images)
    if settings.compile:
        state.denoiser.get_submodule("net").compile(dynamic=False)
    steps = training.run(
        state,
        [loss.objective(state, log.guard.accept)],
        batches,
        images=settings.images,
        schedule=schedule_of(settings),
        clip=settings.clip or None,
        precision=PRECISIONS[settings.precision],
        accumulate=settings.accumulate,
        recompute=settings.recompute,
    )
    return (step for (step,) in steps)
