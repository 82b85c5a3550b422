"""A run with the weights of a checkpoint."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from scorefield import models
from scorefield.commands.autoencoder_files import same_codes
from scorefield.commands.captions import FILE as TOKENIZER
from scorefield.commands.find_checkpoint import find_checkpoint
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import Run, open_run
from scorefield.sde_lib.sde import check_one_level
from scorefield.training import load_weights


@dataclass
class Trained:
    """A run with the weights of a checkpoint."""

    run: Run
    denoiser: models.Denoiser
    checkpoint: Path
    ema: bool

    def check_one_level(self, mode: str) -> None:
        """Raises ValueError where each dimension has its own noise level, which a mode cannot take."""
        check_one_level(self.run.sde, f"--mode={mode}", "use --mode=sample or --mode=likelihood")

    @cached_property
    def described(self) -> dict[str, Any]:
        """The weights, for reports."""
        file = self.checkpoint / ("ema.safetensors" if self.ema else "model.safetensors")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return {
            "checkpoint": self.checkpoint.name if self._inside else str(self.checkpoint),
            "weights": "ema" if self.ema else "raw",
            "checkpoint_sha256": digest,
        }

    @property
    def _inside(self) -> bool:
        return self.checkpoint.resolve().parent == (self.run.workdir / "checkpoints").resolve()


def open_trained(
    workdir: Path,
    device: str | None = None,
    ema: bool = True,
    compiled: bool = False,
    checkpoint: str | None = None,
) -> Trained:
    """The run in a working directory, with its newest weights or those of another checkpoint.

    Args:
        workdir: of the run.
        device: "cpu", "cuda" or "cuda:1", by default a GPU if there is one.
        ema: use the averaged weights rather than the raw ones.
        compiled: compile the network by torch.compile.
        checkpoint: see `find_checkpoint`.

    Raises:
        ValueError: if there is no run, no such valid checkpoint, or it is of another architecture or another run.
    """
    run = open_run(workdir, device)
    place = find_checkpoint(workdir, checkpoint)
    _refuse_of_another(run, place)
    tell(f"reads the {'averaged' if ema else 'raw'} weights of {place}")
    model = run.new_model()
    load_weights(place, model, ema=ema)
    denoiser: models.Denoiser = model.eval().requires_grad_(False).denoiser
    if compiled:
        assert isinstance(denoiser.net, torch.nn.Module)
        denoiser.net.compile()
    return Trained(run, denoiser, place, ema)


def _refuse_of_another(run: Run, place: Path) -> None:
    """Refuse weights whose own run says that their network, path or data range are others."""
    home = place.resolve().parent.parent
    if home == run.workdir.resolve() or not (home / "config.json").is_file():
        return
    other = open_run(home, "cpu")
    odd = [key for key in ("net", "precondition", "sde", "transform") if other.config[key] != run.config[key]]
    odd += ["training.label_dropout"] if other.label_required != run.label_required else []
    odd += [key for key in ("autoencoder", "conditioner", "tokenizer") if not _same_part(key, other, run)]
    if odd or other.data.shape != run.data.shape or other.data.levels != run.data.levels:
        raise ValueError(
            f"{place} is of a run with another {odd[0] if odd else 'data set'} than {run.workdir}: use --workdir={home}"
        )


def _same_part(key: str, other: Run, run: Run) -> bool:
    """Whether two runs have the same autoencoder, conditioner or tokeniser, wherever its files are."""
    if key == "conditioner":
        return bool(other.config.get(key) == run.config.get(key))
    if key == "tokenizer":
        first, second = (each.workdir / TOKENIZER for each in (other, run))
        return not (first.is_file() and second.is_file()) or first.read_bytes() == second.read_bytes()
    there, here = other.home_of_autoencoder, run.home_of_autoencoder
    return there == here or (there is not None and here is not None and same_codes(there, here))
