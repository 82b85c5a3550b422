"""Whether a working directory's run is the one that is asked for: gone on from, refused, or begun from another's."""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from scorefield import training
from scorefield.commands.run import Run, open_run, write_json
from scorefield.configs.defaults import defaults
from scorefield.training import TrainingState
from scorefield.training.checkpoints.checkpoint import load_weights
from scorefield.training.distributed.ranks import Ranks

# What may change when a run goes on: where its data lies, and what it shows and keeps. (A length that the learning
# rate's fall does not depend on may, too.)
FREE = (
    "config.data.root",
    "config.data.path",
    "config.data.download",
    "config.data.cache",
    "config.sampling.",
    "config.training.log_every",
    "config.training.sample_every",
    "config.training.sample_evaluations",
    "config.training.checkpoint_every",
    "config.training.keep",
    "config.training.keep_every",
    "config.training.on_full_disk",
    "config.training.explosion",
    "config.training.recompute",
    "config.training.compile",
    "config.training.learning_rate",
    "config.training.clip",
)
SHOWN = 4


def refuse_another(run: Run) -> None:
    """A directory with another run in it is left alone.

    Raises:
        ValueError: naming what differs; or if its weights came without an optimiser, from an import for one.
    """
    if run.workdir.exists() and not run.workdir.is_dir():
        raise ValueError(f"expected --workdir to be a folder, got the file {run.workdir}: choose another")
    newest = training.latest(run.workdir / "checkpoints")
    if not (run.workdir / "config.json").is_file():
        if newest is None:
            return
        raise ValueError(
            f"{newest} has no {run.workdir / 'config.json'} that says of what: restore it, or choose another"
        )
    if newest is not None and not (newest / "state.pt").exists() and (newest / "ema.safetensors").exists():
        raise ValueError(
            f"{run.workdir} holds weights without an optimiser to go on with (imported, or averaged afterwards): "
            f"begin a new run from them, --fork_from={run.workdir} with another --workdir"
        )
    there, here = (flat(r.described()) for r in (open_run(run.workdir), run))
    free = FREE if run.config.training.decay else (*FREE, "config.training.images")
    odd = [key for key in different(_filled(there), _filled(here)) if not key.startswith(free)]
    if odd:
        shown = ", ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in odd[:SHOWN])
        if "data.fingerprint" in odd[:SHOWN]:
            shown += " (a fingerprint is of the data itself: its files are not what they were)"
        more = f", and {len(odd) - SHOWN} more differ" if len(odd) > SHOWN else ""
        raise ValueError(
            f"{run.workdir} holds a run of another configuration: {shown}{more}: choose another --workdir, or give its "
            "own configuration to go on with it"
        )


class WorkdirLock:
    """A working directory that no other training writes to: locked while the `with` lasts, from when it is there."""

    def __init__(self, workdir: Path) -> None:
        self._workdir, self._held = workdir, -1

    def __enter__(self) -> "WorkdirLock":
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._held >= 0:
            os.close(self._held)

    def lock(self) -> None:
        """Lock it, if it exists and is not locked by this one.

        Raises:
            ValueError: if another process trains there.
        """
        if self._held >= 0 or not self._workdir.is_dir() or not Ranks.current().first:
            return
        held = os.open(self._workdir, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise ValueError(f"another process trains in {self._workdir}: wait for it, or choose another") from None
        except OSError:  # a file system without locks
            os.close(held)
            return
        self._held = held


def resume(run: Run, state: TrainingState, power: training.PowerEMA | None) -> dict[str, Any] | None:
    """Load the newest whole checkpoint, clear away what a kill left, and say what was damaged; None if there is none.

    Raises:
        ValueError: if none is whole.
    """
    folder, ranks = run.workdir / "checkpoints", Ranks.current()
    if ranks.first:  # before the others look
        for parent in (folder, run.workdir / "snapshots"):
            training.remove_partial(parent)
        _say(training.latest_valid(folder, set_aside=True)[1])
    ranks.barrier()
    checkpoint, _ = training.latest_valid(folder)
    if checkpoint is None:
        return None
    held = training.load(checkpoint, state, power, verified=True)
    for group in state.optimizer.param_groups:  # which may be another than the checkpoint's
        group["initial_lr"] = run.config.training.learning_rate
    return held


def origin(run: Run, fork_from: str | None) -> Path | None:
    """The run to begin from, if this one begins from another: the one asked for, or the one it was begun from before.

    Raises:
        ValueError: if it was begun from another one, or from none.
    """
    record = run.workdir / "fork.json"
    before = json.loads(record.read_text())["from"] if record.is_file() else None
    asked = None if fork_from is None else str(Path(fork_from).resolve())
    if asked is not None and asked != before and (run.workdir / "config.json").is_file():
        raise ValueError(
            f"{run.workdir} holds a run that began from {before or 'scratch'}, not from {asked}: choose another "
            "--workdir, or go on with it without --fork_from"
        )
    if asked == str(run.workdir.resolve()):
        raise ValueError(f"expected --fork_from another run than --workdir={run.workdir} itself: choose another")
    found = asked or before
    return None if found is None else Path(found)


def fork(run: Run, source: Path, denoiser: nn.Module, ema: bool) -> dict[str, Any]:
    """Put another run's newest weights into a denoiser; what was taken, for fork.json.

    Raises:
        ValueError: if there are none, or they are of another architecture.
    """
    other = open_run(source, "cpu")
    checkpoint, notes = training.latest_valid(source / "checkpoints")
    _say(notes)
    if checkpoint is None:
        raise ValueError(f"expected a checkpoint in {source / 'checkpoints'}, found none: train it first")
    there, here = (flat(r.described()["config"]) for r in (other, run))
    odd = different(there, here)
    try:
        load_weights(checkpoint, denoiser, ema)
    except ValueError as error:
        keys = [key for key in odd if key.startswith("net.")][:SHOWN]
        shown = ", ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in keys)
        raise ValueError(f"cannot fork from {source}: {shown or error}: give the network of its config.json") from None
    kept = [key for key in odd if key.startswith(("sde.", "precondition.", "transform.", "data."))]
    return {
        "from": str(source.resolve()),
        "checkpoint": checkpoint.name,
        "weights": "ema" if ema else "raw",
        "imported": (source / "import.json").is_file(),
        "other_than_there": {key: [there.get(key), here.get(key)] for key in kept},
    }


def write_origin(run: Run, record: dict[str, Any]) -> None:
    """Write fork.json, and say it."""
    write_json(run.workdir / "fork.json", record)
    kind = "imported weights" if record["imported"] else f"{record['weights']} weights"
    odd = ", ".join(record["other_than_there"])
    other = f"; other than there: {odd}" if odd else ""
    print(f"begins from the {kind} of {record['from']}, checkpoint {record['checkpoint']}{other}")


def different(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The keys whose values differ, or that only one has."""
    return [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def _say(notes: list[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def _filled(run: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of settings that did not exist when it was written, which mean what was done then."""
    ours = flat({"config": {"training": defaults().training.to_dict()}})
    return {key: value for key, value in ours.items() if key.count(".") == 2} | run
