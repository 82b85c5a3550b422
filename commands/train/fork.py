"""A run that starts from the weights of another one."""

import json
from pathlib import Path
from typing import Any

from scorefield.commands.captions import FILE as TOKENIZER
from scorefield.commands.captions import takes_captions
from scorefield.commands.find_checkpoint import find_checkpoint
from scorefield.commands.outputs import write_json
from scorefield.commands.run import Run, open_run
from scorefield.commands.training.differences import different, flat, in_words
from scorefield.training import Model
from scorefield.training.checkpoints.checkpoint import load_weights


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
        shown = in_words(there, here, [key for key in odd if key.startswith("net.")])
        raise ValueError(f"cannot fork from {source}: {shown or error}: give the network of its config.json") from None
    if takes_captions(run.config) and takes_captions(other.config) and other.tokenizer.text != run.tokenizer.text:
        raise ValueError(
            f"cannot fork from {source}: its captions have other tokens; give --config.tokenizer={source / TOKENIZER}"
        )
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
