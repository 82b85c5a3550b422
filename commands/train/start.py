"""The start of a training: seeds, model, optimiser and averages, new or from another run."""

import random
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import Generator

from scorefield import training
from scorefield.commands.autoencoder_files import has_autoencoder, same_codes
from scorefield.commands.captions import captions_in, takes_captions, tokenizer_of
from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.data_places import make_absolute, open_split
from scorefield.commands.generate import grid, of_rows
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import Run, open_run, stored_tensor
from scorefield.commands.train.fork import fork
from scorefield.commands.train.objective import Loss
from scorefield.commands.training.differences import flat
from scorefield.commands.training.session import Session
from scorefield.configs import build
from scorefield.configs.defaults import defaults
from scorefield.configs.own import fill, preset
from scorefield.sde_lib import MultivariateVP
from scorefield.solvers import Schedule
from scorefield.training import Model, Ranks, TrainingState
from scorefield.training.adam import adam
from scorefield.training.data import Dataset, layout
from scorefield.training.data.batches import check_mirrored_captions
from scorefield.training.muon import muon

COUNTED = 10_000  # images in which the levels are counted


def open_data(config: ml_collections.ConfigDict, workdir: Path) -> tuple[Dataset, dict[str, Any]]:
    """The training data of a configuration, whose settings that are None get those of the run in `workdir`, if any.

    The places of the data become absolute, so that later commands find it from any folder.

    Returns:
        The data, and what a new run leaves to it: see `configs.own`.
    """
    if (workdir / "config.json").is_file():
        saved = open_run(workdir, "cpu").config.to_dict()
        saved["training"] = defaults().training.to_dict() | saved["training"]
        fill(config, flat(saved))
    tell(f"reads the train split of {config.data.name}")
    dataset = open_split(config.data, "train")
    make_absolute(config.data)
    for key in ("autoencoder", "tokenizer"):
        if config.get(key):
            config[key] = str(Path(config[key]).expanduser().absolute())
    check_copy(config, workdir)
    chosen = fill(config, preset(len(dataset), dataset.shape))
    if takes_captions(config) and config.transform.flip:
        check_mirrored_captions(dataset)
    if takes_captions(config) and config.conditioner.vocabulary is None:
        tokenizer = tokenizer_of(workdir, config, lambda: captions_in(dataset))
        fill(config, {"conditioner.vocabulary": tokenizer.size})
    fill(config, {"conditioner.classes": classes_of(config, dataset)} if config.get("conditioner") else {})
    if config.precondition.name == "levels" and config.get("autoencoder"):
        raise ValueError(
            "expected another parameterisation than levels for the codes of an autoencoder, which have no levels: use v"
        )
    if config.precondition.name == "levels" and config.precondition.probabilities is None:
        fill(config, {"precondition.probabilities": probabilities_of(dataset, config.seed)})
    return dataset, chosen


def check_copy(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuse a directory for a new latent run that has another autoencoder, which the run would take.

    Raises:
        ValueError: if it has one.
    """
    place = config.get("autoencoder")
    if not place or (workdir / "config.json").is_file() or not has_autoencoder(workdir):
        return
    if not same_codes(workdir, Path(place)):
        raise ValueError(
            f"expected a --workdir without an autoencoder, or with that of {place}, got another one in {workdir}: "
            "choose another --workdir"
        )


def classes_of(config: ml_collections.ConfigDict, dataset: Dataset) -> int | None:
    """The number of classes of the boxes or the map that a conditioner takes; None where it takes none."""
    for key in build.conditioning_keywords(config):
        if key in dataset.cond and key in ("boxes", "map"):
            classes = dataset.cond[key][..., 0] if key == "boxes" else dataset.cond[key]
            return int(classes.max()) + 1
    return None


def probabilities_of(dataset: Dataset, seed: int) -> tuple[float, ...]:
    """The frequency of each level in the data, each counted once more; of some thousand images if there are many.

    Raises:
        ValueError: for data without levels.
    """
    if dataset.levels is None:
        raise ValueError(
            f"expected integers for the parameterisation levels, got continuous values in {dataset.name}: use v"
        )
    stored = stored_tensor(dataset.subset(COUNTED, seed)).long().flatten()
    counts = torch.bincount(stored, minlength=dataset.levels) + 1
    return tuple((counts / counts.sum()).tolist())


def start(
    run: Run, source: Path | None, ema: bool, checkpoint: str | None = None
) -> tuple[Session, Loss, dict[str, Any] | None]:
    """An untrained session, or one with the weights of another run, its loss, and the record of that for fork.json.

    Args:
        run: to train.
        source: another run whose weights a new one starts with, or None.
        ema: its averaged weights rather than the raw ones.
        checkpoint: of that run, see `find_checkpoint`.

    Raises:
        ValueError: if the batch does not divide, the network does not take the data, or the sampler does not build.
    """
    settings, ranks = run.config.training, Ranks.current()
    ranks.rows(settings.batch, settings.accumulate)  # raises
    _seed(run.config.seed)  # before the path is made, which may have random weights
    loss = Loss(run)
    model = run.new_model()
    _try_out(run, model)
    if not ranks.first:  # each process has its own dropout
        torch.manual_seed(int(np.random.SeedSequence([run.config.seed, 2, ranks.rank]).generate_state(1)[0]))
    optimizer = adam(
        model, settings.learning_rate, tuple(settings.betas), settings.adam_eps, settings.weight_decay,
        settings.decay_biases,
    )  # fmt: skip
    if settings.optimizer == "muon":
        optimizer = muon(model, optimizer, settings.momentum)
    begun = training.latest(run.workdir / "checkpoints") is not None
    # Before the averages are made, which start from the weights.
    forked = None if source is None or begun else fork(run, source, model, ema, checkpoint)
    averages = training.EMA(model, (settings.ema, *settings.more_ema), settings.ema_ramp)
    generator = Generator(run.device).manual_seed(run.config.seed)
    state = TrainingState(model, optimizer, averages, generator, times=loss.measured)
    power = training.PowerEMA(model, settings.snapshot_lengths) if settings.snapshot_every > 0 else None
    return Session(run, state, power), loss, forked


def _seed(seed: int) -> None:
    # All three, although only torch is used here: data and networks of users may draw from the others.
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@torch.no_grad()
def _try_out(run: Run, model: Model) -> None:
    """Build the sampler and call the network once, so that a mistake in them is found before any work."""
    solver = build.build(build.SOLVERS, run.config.sampling.solver)
    one = torch.zeros(1, *run.shape, device=run.device)
    cond = of_rows(sampled_conditioning(run, 1, few=True).cond, run.device)
    ends = Schedule(run.sde, grid(run, run.config.sampling), one)[-1]
    if isinstance(run.sde, MultivariateVP):
        cond["code"] = torch.zeros(1, run.sde.size, device=run.device)
        solver.check_takes(run.sde.given(cond["code"]))
    try:
        model(one, ends.alpha, ends.sigma, **cond)
    except (RuntimeError, TypeError, ValueError) as error:  # a user's own network may take other arguments
        if isinstance(error, ValueError):  # of our networks
            if not (line := layout.advice(run.shape)):
                raise
            raise ValueError(
                f"expected images (C, H, W) for {run.config.net.name}, got items of shape {run.shape} in "
                f"{run.data.name}: {line}; other data takes an MLP (--config.net=mlp)"
            ) from error
        raise ValueError(f"expected a network that takes data of shape {run.shape}: {error}") from error
