"""An average of any length from a run's snapshots, written as a run that every mode can use."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from scorefield import training
from scorefield.commands.autoencoder_files import FACTS, WEIGHTS
from scorefield.commands.captions import FILE as TOKENIZER
from scorefield.commands.outputs import write_json
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import open_run
from scorefield.training.checkpoints.atomic import write_tensors

FAR = 0.1  # the largest distance from the profile, over its norm, without a warning


def posthoc_ema(
    workdir: Path, *, sigma_rel: float | None = None, output: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Combine the snapshots of `workdir` into the average of a relative length; `output` is a run with those weights.

    Karras et al. 2024 (arXiv 2312.02696), Section 3.2: for runs trained with `training.snapshot_every`.

    Args:
        workdir: of the run.
        sigma_rel: the length, the profile's standard deviation over the length of training, as 0.08.
        output: a new folder, by default `workdir`/posthoc_SIGMA_REL.
        device: to build the network on.

    Raises:
        ValueError: if there are no snapshots, or the folder is not empty.
    """
    if sigma_rel is None:
        raise ValueError("expected --sigma_rel, the length of the average, as --sigma_rel=0.08")
    folder = Path(output) if output else workdir / f"posthoc_{sigma_rel:g}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected --output to be a new folder, got {folder}, which is not empty: choose another")
    run = open_run(workdir, device)
    tell(f"reads the snapshots of {workdir}")
    model = run.new_model()
    stored, notes = training.snapshots(workdir / "snapshots")
    for note in notes:
        print(note, file=sys.stderr)
    report = training.reconstruct(stored, sigma_rel, model)
    if report["profile_error"] > FAR:
        print(
            f"the combination of the snapshots is {report['profile_error']:.0%} away from an average of this length: "
            "choose a length nearer to the stored ones, or store more snapshots",
            file=sys.stderr,
        )
    with training.atomic_dir(folder / "checkpoints" / f"{report['images']:010d}") as place:
        write_tensors(place / "ema.safetensors", model.state_dict())
    write_json(folder / "posthoc_ema.json", {"from": str(workdir.resolve()), **report})
    for name in (WEIGHTS, FACTS, TOKENIZER):  # of a latent run, and of one with captions
        if (workdir / name).is_file():
            shutil.copyfile(workdir / name, folder / name)
    write_json(folder / "config.json", json.loads((workdir / "config.json").read_text()))
    return {**report, "files": [str(folder)]}
