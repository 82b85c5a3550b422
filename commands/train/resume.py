"""A working directory with a run in it: resumed, refused as another run, or started from another run's weights."""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

from scorefield import training
from scorefield.commands.find_checkpoint import find_checkpoint
from scorefield.commands.outputs import write_json
from scorefield.commands.run import Run, open_run
from scorefield.commands.train.session import Session
from scorefield.configs.defaults import defaults
from scorefield.training import Model
from scorefield.training.checkpoints.checkpoint import load_weights
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
    "config.training.log_",
    "config.training.sample_",
    "config.training.checkpoint_",
    "config.training.keep",
    "config.training.keep_every",
    "config.training.on_full_disk",
    "config.training.explosion",
    "config.training.recompute",
    "config.training.compile",
    "config.training.learning_rate",
    "config.training.clip",
)
ADDED = ("training", "autoencoder", "conditioner")  # parts to which settings were added since the first files
SHOWN = 3


def refuse_another(run: Run) -> None:
    """Refuse a directory that has another run in it.

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
    there, here = (flat(r.described()) for r in (open_run(run.workdir), run))
    free = FREE if run.config.training.decay else (*FREE, "config.training.images")
    odd = [key for key in different(_filled(there), _filled(here)) if not key.startswith(free)]
    if odd:
        shown = _shown(there, here, odd)
        if "data.fingerprint" in odd[:SHOWN]:
            shown += " (the fingerprint is of the data itself: its files have changed)"
        raise ValueError(
            f"{run.workdir} holds a run of another configuration: {shown}: choose another --workdir, or leave "
            "--config out to resume it"
        )


class WorkdirLock:
    """A lock on a working directory, so that no other training writes to it while the `with` lasts."""

    def __init__(self, workdir: Path) -> None:
        self._workdir, self._lock = workdir, -1

    def __enter__(self) -> "WorkdirLock":
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def lock(self) -> None:
        """Lock the directory if it exists; call again after it is made.

        Raises:
            ValueError: if another process trains there.
        """
        if self._lock >= 0 or not self._workdir.is_dir() or not Ranks.current().first:
            return
        descriptor = os.open(self._workdir, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(f"another process trains in {self._workdir}: wait for it, or choose another") from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
        self._lock = descriptor


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
    extra = training.load(checkpoint, session.state, session.power, verified=True)
    for group in session.state.optimizer.param_groups:  # the configured rate may differ from the checkpoint's
        group["initial_lr"] = run.config.training.learning_rate
    return extra


def origin(run: Run, fork_from: str | None) -> Path | None:
    """The run whose weights this one starts from: that of `fork_from`, or the one recorded in fork.json; or None.

    Raises:
        ValueError: if this run was started from another one, or from scratch.
    """
    record = run.workdir / "fork.json"
    before = json.loads(record.read_text())["from"] if record.is_file() else None
    source = None if fork_from is None else str(Path(fork_from).resolve())
    if source is not None and source != before and (run.workdir / "config.json").is_file():
        raise ValueError(
            f"{run.workdir} holds a run that started from {before or 'scratch'}, not from {source}: choose another "
            "--workdir, or resume it without --fork_from"
        )
    if source == str(run.workdir.resolve()):
        raise ValueError(f"expected --fork_from another run than --workdir={run.workdir} itself: choose another")
    return Path(name) if (name := source or before) else None


def fork(run: Run, source: Path, model: Model, ema: bool, checkpoint: str | None = None) -> dict[str, Any]:
    """Load weights of another run into a model; the record for fork.json. Another path keeps its own weights.

    Raises:
        ValueError: if there are none, or they are of another architecture.
    """
    other = open_run(source, "cpu")
    place = find_checkpoint(source, checkpoint)
    there, here = (flat(r.described()["config"]) for r in (other, run))
    odd = different(there, here)
    try:
        load_weights(place, model.denoiser if any(key.startswith("sde.") for key in odd) else model, ema)
    except ValueError as error:
        shown = _shown(there, here, [key for key in odd if key.startswith("net.")])
        raise ValueError(f"cannot fork from {source}: {shown or error}: give the network of its config.json") from None
    kept = [key for key in odd if key.startswith(("sde.", "precondition.", "transform.", "data."))]
    return {
        "from": str(source.resolve()),
        "checkpoint": place.name,
        "weights": "ema" if ema else "raw",
        "imported": (source / "import.json").is_file(),
        "other_than_there": {key: [there.get(key), here.get(key)] for key in kept},
    }


def write_origin(run: Run, record: dict[str, Any]) -> None:
    """Write fork.json, and print a line."""
    write_json(run.workdir / "fork.json", record)
    kind = "imported weights" if record["imported"] else f"{record['weights']} weights"
    odd = ", ".join(record["other_than_there"])
    other = f"; other than there: {odd}" if odd else ""
    print(f"starts from the {kind} of {record['from']}, checkpoint {record['checkpoint']}{other}")


def different(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The keys whose values differ, or that only one has."""
    return [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]


def _shown(there: dict[str, Any], here: dict[str, Any], odd: list[str]) -> str:
    """The first keys that differ. Of a part with another name the name alone, and how many more differ."""
    names = tuple(key.removesuffix("name") for key in odd if key.endswith(".name"))
    odd = [key for key in odd if key.endswith(".name") or not key.startswith(names)]
    more = [f"and {len(odd) - SHOWN} more differ"] if len(odd) > SHOWN else []
    return ", ".join([*(f"{k} is {there.get(k)!r} there and {here.get(k)!r} here" for k in odd[:SHOWN]), *more])


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def _print(notes: list[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def _filled(run: dict[str, Any]) -> dict[str, Any]:
    """The settings, with defaults for settings newer than the file; the defaults are the behaviour at that time."""
    config = defaults().to_dict()
    ours = flat({"config": {key: config[key] for key in ADDED if key in config}})
    return {key: value for key, value in ours.items() if key.count(".") <= 2} | run
