"""Train an autoencoder of images; the same command resumes an interrupted run."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import Generator

from scorefield import training
from scorefield.commands.data_facts import DataFacts
from scorefield.commands.data_places import make_absolute, open_split
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import Run, device_of, read_run
from scorefield.commands.train_autoencoder.held_out import HeldOut
from scorefield.commands.train_autoencoder.log import Log, autoencoder_of, merged
from scorefield.commands.train_autoencoder.losses import Losses
from scorefield.commands.train_autoencoder.report import FILE as REPORT
from scorefield.commands.train_autoencoder.report import write_report
from scorefield.commands.train_autoencoder.session import AutoencoderSession
from scorefield.commands.train_autoencoder.settings import check_images, check_place, check_sides, validate
from scorefield.commands.training.differences import flat
from scorefield.commands.training.lock import WorkdirLock
from scorefield.commands.training.loop import TIMEOUT, Due, follow
from scorefield.commands.training.resume import refuse_another, resume
from scorefield.commands.training.schedule import schedule_of
from scorefield.commands.training.settings import PRECISIONS
from scorefield.configs import build
from scorefield.configs.autoencoder_defaults import autoencoder_defaults
from scorefield.configs.own import fill, preset
from scorefield.training import Model, Ranks, Step, TrainingState
from scorefield.training.adam import adam
from scorefield.training.data import Dataset


def train_autoencoder(workdir: Path, config: ml_collections.ConfigDict, *, device: str | None = None) -> dict[str, Any]:
    """Train the autoencoder of a configuration in `workdir`, from its newest valid checkpoint if it has one.

    Under torchrun the processes share every batch; training.batch is the batch of all processes together.

    Writes autoencoder.safetensors and autoencoder.json, which latent runs read (--config.autoencoder=WORKDIR); and
    autoencoder_report.json, config.json, checkpoints/, metrics.jsonl, timing.jsonl, curves.png, reconstructions/*.png
    and TensorBoard events.

    Args:
        workdir: of the run.
        config: its configuration.
        device: to train on.

    Raises:
        ValueError: if the data is no images that the autoencoder takes, the directory holds another run, or a loss is
            not finite. Also if there is no room for a checkpoint, and `training.on_full_disk` is "stop".
    """
    ranks = Ranks.of_environment(TIMEOUT)
    with ranks.failing_together():
        summary = _train(workdir, config, device)
        ranks.shutdown()
    return summary if ranks.first else {}


def _train(workdir: Path, config: ml_collections.ConfigDict, device: str | None) -> dict[str, Any]:
    if not build.is_autoencoder(config):
        raise ValueError(
            "expected the configuration of an autoencoder, as --config=autoencoder:fashion_f4, got one of a denoiser: "
            "train that with --mode=train"
        )
    complete = autoencoder_defaults().to_dict()
    for group in ("transform", "loss", "training"):
        config[group] = ml_collections.ConfigDict(complete[group] | config[group].to_dict())
    config = ml_collections.ConfigDict(build.modern_config(config.to_dict()))
    validate(config)
    check_place(workdir)
    dataset = _open_data(config, workdir)
    run = Run(workdir, config, DataFacts.of(dataset), device_of(device))
    with WorkdirLock(workdir) as lock:
        refuse_another(run, autoencoder_defaults())
        losses = Losses(run)
        session = _start(run, dataset, losses)
        held_out = HeldOut.of(run, losses.distance, losses.distance_name)
        log = Log(run, session.state, held_out)
        objectives = losses.objectives(session.state)
        for objective in objectives:
            # An adversarial loss may pass through 0, where a ratio to its mean says nothing.
            log.guard(objective, 0.0 if losses.adversarial else config.training.explosion)
        loaded = resume(session) or {}
        log.before = session.state.images
        if Ranks.current().first:
            run.save()
            lock.lock()
            _introduce(session, losses)
        steps = _steps(session, objectives)
        return _run(session, losses, log, steps, loaded.get("log", {}))


def _open_data(config: ml_collections.ConfigDict, workdir: Path) -> Dataset:
    """The training images. A size that is None becomes that of the run in `workdir`, or is chosen by the images."""
    if (workdir / "config.json").is_file():
        fill(config, flat(read_run(workdir, "cpu").config.to_dict()))
    tell(f"reads the train split of {config.data.name}")
    dataset = open_split(config.data, "train")
    check_images(dataset)
    make_absolute(config.data)
    fill(config, preset(len(dataset), dataset.shape))
    return dataset


def _start(run: Run, dataset: Dataset, losses: Losses) -> AutoencoderSession:
    """An untrained session.

    Raises:
        ValueError: if the batch does not divide, or the autoencoder does not take the images.
    """
    settings, ranks, seed = run.config.training, Ranks.current(), run.config.seed
    ranks.rows(settings.batch, settings.accumulate)  # raises
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    autoencoder = build.autoencoder(run.config.net, dataset.shape[0]).to(run.device)
    check_sides(dataset, autoencoder)
    model: Model = Model(autoencoder=autoencoder, discriminator=losses.discriminator()).to(run.device)
    losses.try_out(model)
    optimizers = [
        adam(part, settings.learning_rate, tuple(settings.betas), settings.adam_eps, settings.weight_decay)
        for part in (model.autoencoder, model.discriminator)
        if part is not None
    ]
    averages = training.EMA(model, settings.ema, settings.ema_ramp)
    generator = Generator(run.device).manual_seed(seed)
    state = TrainingState(model, optimizers[0], averages, generator, more_optimizers=optimizers[1:])
    return AutoencoderSession(run, state, dataset=dataset)


def _introduce(session: AutoencoderSession, losses: Losses) -> None:
    """Print what is trained."""
    run, state, dataset = session.run, session.state, session.dataset
    net, discriminator = autoencoder_of(state.model), state.model.discriminator
    _, height, width = dataset.shape
    counts = [f"{run.config.net.name} autoencoder of {sum(p.numel() for p in net.parameters()):,} parameters"]
    if discriminator is not None:
        counts.append(f"discriminator of {sum(p.numel() for p in discriminator.parameters()):,}")
    kind = f"{dataset.levels} levels" if dataset.levels else "continuous"
    print(
        f"{run.device} ({torch.get_num_threads()} threads) | {', '.join(counts)} | codes {net.code_channels} x "
        f"{height // net.factor} x {width // net.factor} | losses {losses.described} | {dataset.name}: "
        f"{len(dataset):,} of shape {dataset.shape}, {kind} | from {state.images:,} to "
        f"{run.config.training.images:,} images",
        flush=True,
    )
    for note in dataset.notes:
        print(f"{dataset.name}: {note}")
    if state.images >= run.config.training.images:
        longer = "start another" if run.config.training.decay else "set a larger training.images"
        print(f"{run.workdir} has been trained to its end: to continue, {longer}")


def _steps(session: AutoencoderSession, objectives: list[training.Objective]) -> Iterator[Step]:
    run, state, settings = session.run, session.state, session.run.config.training
    transform = run.config.transform
    batches = training.Batches(
        session.dataset,
        settings.batch,
        seed=run.config.seed,
        start=state.images,
        transform=training.ToModelRange(run.data.levels, run.low, run.high, transform.dequantise, transform.flip),
        device=run.device,
    )
    steps = training.run(
        state,
        objectives,
        batches,
        images=settings.images,
        schedule=schedule_of(settings),
        clip=settings.clip or None,
        precision=PRECISIONS[settings.precision],
        accumulate=settings.accumulate,
        recompute=settings.recompute,
    )
    return map(merged, steps)


def _run(
    session: AutoencoderSession, losses: Losses, log: Log, steps: Iterator[Step], log_state: dict[str, Any]
) -> dict[str, Any]:
    """Take the steps, with measurements where they are due; the report at the end."""
    run = session.run

    def on_step(step: Step, due: Due) -> None:
        if due(run.config.training.evaluate_every) or step.images >= run.config.training.images:
            log.evaluate(step)

    began = time.perf_counter()
    summary = follow(session, log, steps, log_state, on_step)
    if not Ranks.current().first:
        return {}
    report = run.workdir / REPORT
    if summary["images_this_time"] or not report.is_file():
        write_report(session, losses, log, time.perf_counter() - began)
    files = [
        *session.written,
        report,
        *(run.workdir / name for name in ("checkpoints", "curves.png", "reconstructions")),
    ]
    measured = {name: round(value, 5) for name, value in log.measured.items() if isinstance(value, float)}
    return summary | {"held out": measured, "files": [str(file) for file in files if file.exists()]}
