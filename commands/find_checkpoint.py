"""A checkpoint of a run, by its name or its path."""

import sys
from pathlib import Path

from scorefield.training import latest_valid
from scorefield.training.checkpoints.atomic import verify

SHOWN = 4  # checkpoints in a message


def find_checkpoint(workdir: Path, name: str | None = None) -> Path:
    """The folder of a checkpoint whose files match their checksums.

    Args:
        workdir: of the run.
        name: of a checkpoint of this run ("0000006208", or "6208"), or the path of one. The default is the newest.

    Raises:
        ValueError: if there is no such checkpoint, or it is damaged.
    """
    folder = workdir / "checkpoints"
    if name is None or name == "latest":
        newest, notes = latest_valid(folder)
        for note in notes:
            print(note, file=sys.stderr)
        if newest is None:
            raise ValueError(f"expected a checkpoint in {folder}, found none: train first")
        return newest
    place = folder / name.zfill(10) if name.isdecimal() else Path(name).expanduser()
    if not any(place.glob("*.safetensors")):
        there = ", ".join(sorted(path.name for path in folder.glob("[0-9]*"))[-SHOWN:]) or "none"
        raise ValueError(
            f"expected --checkpoint to name a checkpoint of {workdir} or the folder of one, got {name!r}: the newest "
            f"are {there}"
        )
    if (wrong := verify(place)) is not None:
        raise ValueError(f"{wrong}: restore it, or choose another --checkpoint")
    return place
