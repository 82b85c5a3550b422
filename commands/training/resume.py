"""A working directory with a run in it: resumed, or refused as another run."""

import sys
from typing import Any

import ml_collections

from scorefield import training
from scorefield.commands.run import Run, read_run
from scorefield.commands.training.differences import different, flat, in_words
from scorefield.commands.training.session import Session
from scorefield.training.distributed.ranks import Ranks

# The settings that may change when a run is resumed: the place of its data, and what it logs and keeps. (So may the
# number of images, unless the learning rate depends on it.)
FREE = (
    "config.data.root",
    "config.data.path",
    "config.data.download",
    "config.data.cache",
    "config.sampling.",
    "data.class_",  # newer than the file, perhaps; the fingerprint is of the labels too
    "data.std",
    "config.training.log_",
    "config.training.sample_",
    "config.training.checkpoint_",
    "config.training.evaluate_",
    "config.training.measure_",
    "config.training.keep",
    "config.training.keep_every",
    "config.training.on_full_disk",
    "config.training.explosion",
    "config.training.recompute",
    "config.training.compile",
    "config.training.learning_rate",
    "config.training.clip",
)
ADDED = (
    "training",
    "autoencoder",
    "conditioner",
    "tokenizer",
)  # parts to which settings were added since the first files


def refuse_another(run: Run, complete: ml_collections.ConfigDict) -> None:
    """Refuse a directory that has another run in it.

    Args:
        run: to train.
        complete: the default configuration of its kind, for settings that are newer than the run.

    Raises:
        ValueError: naming the differences; or if its weights have no optimiser, for example after an import.
    """
    if run.workdir.exists() and not run.workdir.is_dir():
        raise ValueError(f"expected --workdir to be a folder, got the file {run.workdir}: choose another")
    newest = training.latest(run.workdir / "checkpoints")
    if not (run.workdir / "config.json").is_file():
        if newest is None:
            return
        raise ValueError(f"{newest} has no {run.workdir / 'config.json'}: restore it, or choose another --workdir")
    if newest is not None and not (newest / "state.pt").exists() and (newest / "ema.safetensors").exists():
        raise ValueError(
            f"{run.workdir} holds weights without an optimiser (imported, or averaged afterwards), so it cannot be "
            f"resumed: start a new run from them, --fork_from={run.workdir} with another --workdir"
        )
    there, here = (flat(r.described()) for r in (read_run(run.workdir), run))
    newer = _defaults(complete)
    free = FREE if run.config.training.decay else (*FREE, "config.training.images")
    odd = [key for key in different(newer | there, newer | here) if not key.startswith(free)]
    if odd:
        shown = in_words(there, here, odd)
        if "data.fingerprint" in shown:
            shown += " (the fingerprint is of the data itself: its files have changed)"
        raise ValueError(
            f"{run.workdir} holds a run of another configuration: {shown}: choose another --workdir, or leave "
            "--config and its settings out to resume it"
        )


def resume(session: Session) -> dict[str, Any] | None:
    """Load the newest valid checkpoint, remove what a kill left, and report damage; None if there is no checkpoint.

    Returns:
        The checkpoint's extra.

    Raises:
        ValueError: if there are checkpoints, and none is valid.
    """
    run, ranks = session.run, Ranks.current()
    folder = run.workdir / "checkpoints"
    if ranks.first:  # before the others look
        for parent in (folder, run.workdir / "snapshots"):
            training.remove_partial(parent)
        _print(training.latest_valid(folder, rename_damaged=True)[1])
    ranks.barrier()
    checkpoint, _ = training.latest_valid(folder)
    if checkpoint is None:
        return None
    # The configured rates may differ from the checkpoint's.
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in session.state.optimizers]
    extra = training.load(checkpoint, session.state, session.power, verified=True)
    for optimizer, own in zip(session.state.optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["initial_lr"] = rate
    return extra


def _print(notes: list[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def _defaults(complete: ml_collections.ConfigDict) -> dict[str, Any]:
    """The defaults of settings newer than a file, which are the behaviour at that time."""
    ours = flat({"config": {key: value for key, value in complete.to_dict().items() if key in ADDED}})
    return {key: value for key, value in ours.items() if key.count(".") <= 2}
