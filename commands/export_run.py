"""Write a run's weights for others: a folder of safetensors and JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from scorefield.commands.autoencoder_files import write_autoencoder
from scorefield.commands.captions import FILE as TOKENIZER
from scorefield.commands.captions import takes_captions
from scorefield.commands.trained import open_trained
from scorefield.models.checkpoints.diffusers.export import to_diffusers
from scorefield.models.checkpoints.own import save_pretrained

FORMATS = ("scorefield", "diffusers")


def export_run(
    workdir: Path,
    *,
    output: str | None = None,
    to: str = "scorefield",
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The weights of a run as a folder that `from_pretrained` reads, or diffusers' own.

    Args:
        workdir: of the run.
        output: the folder, by default `workdir`/export.
        to: "scorefield", or "diffusers" for a U-Net that it has too.
        ema: the averaged weights rather than the raw ones.
        checkpoint: see `find_checkpoint`.
        device: to load them on.

    Raises:
        ValueError: if there is no trained run, the folder is not empty, or diffusers has no such network.
    """
    if to not in FORMATS:
        raise ValueError(f"expected --to to be one of {', '.join(FORMATS)}, got {to!r}")
    folder = Path(output) if output else workdir / "export"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected --output to be a new folder, and there is something in {folder}")
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("export")
    run = trained.run
    if to == "diffusers" and run.autoencoder is not None:
        raise ValueError(
            "expected --to=scorefield for a latent run, got diffusers, whose pipeline would show codes as images"
        )
    if to == "diffusers":
        to_diffusers(trained.denoiser, folder, run.sde, size=_size(run.shape))
    else:
        discrete = run.levels is not None
        low, high = (run.low, run.high) if discrete else (-float("inf"), float("inf"))
        shape, levels = run.shape, run.levels
        save_pretrained(
            trained.denoiser, run.sde, folder, shape=shape, levels=levels, low=low, high=high,
            class_names=run.data.class_names, class_counts=run.data.class_counts,
        )  # fmt: skip
        if run.autoencoder is not None:
            write_autoencoder(folder, dataclasses.replace(run.autoencoder, levels=run.data.levels))
        if takes_captions(run.config):
            (folder / TOKENIZER).write_text(run.tokenizer.text)
    return {"format": to, **trained.described, "files": [str(folder)]}


def _size(shape: tuple[int, ...]) -> int | tuple[int, int] | None:
    if len(shape) != 3:
        return None
    height, width = shape[1:]
    return height if height == width else (height, width)
