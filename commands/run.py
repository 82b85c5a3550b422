"""A run: a working directory with a configuration, facts of its data, and checkpoints."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import Tensor

from scorefield import models
from scorefield.commands.autoencoder_files import (
    StoredAutoencoder,
    encoded_at_once,
    has_autoencoder,
    read_autoencoder,
    write_autoencoder,
)
from scorefield.commands.captions import FILE as TOKENIZER
from scorefield.commands.captions import captions_in, takes_captions, tokenizer_of
from scorefield.commands.data_facts import DataFacts
from scorefield.commands.data_places import open_split
from scorefield.commands.outputs import write_json
from scorefield.configs import build
from scorefield.configs.text import suggestion
from scorefield.models.latent import in_tiles
from scorefield.models.text_tokens import WordPieces
from scorefield.sde_lib import SDE
from scorefield.sde_lib.quantise import cell_centres, quantise
from scorefield.training import Model
from scorefield.training.checkpoints.atomic import atomic_file
from scorefield.training.data import Dataset
from scorefield.training.data.batches import tensor
from scorefield.training.data.units import odd_units_of

VERSION = 1
EXAMPLES = 64


@dataclass
class Run:
    """A configuration, and the objects that it describes.

    Args:
        workdir: its directory.
        config: the configuration.
        data: facts of the data.
        device: where its networks are.
        tile: side of the tiles in which a latent run decodes, in codes; 0 for none.
    """

    workdir: Path
    config: ml_collections.ConfigDict
    data: DataFacts
    device: torch.device
    tile: int = 0

    @cached_property
    def sde(self) -> SDE:
        sde: SDE = build.build(build.SDES, self.config.sde, shape=self.shape)
        with torch.no_grad():
            change = sde.log_snr(torch.linspace(float(sde.t_min), float(sde.t_max), 33)).diff()
        if not bool((change < 0).all()):
            raise ValueError(
                f"expected a path whose log-SNR falls, got {build.unparse(self.config.sde)}: correct its settings"
            )
        return sde

    @cached_property
    def autoencoder(self) -> StoredAutoencoder | None:
        """Of a latent run: its own copy, or before there is one that of the configuration. None for other runs."""
        return None if self.home_of_autoencoder is None else read_autoencoder(self.home_of_autoencoder, self.device)

    @property
    def home_of_autoencoder(self) -> Path | None:
        """The directory from which `autoencoder` is read."""
        place = self.config.get("autoencoder")
        if not place:
            return None
        return self.workdir if has_autoencoder(self.workdir) else Path(place)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one sample of the model, *D: of the codes of a latent run, of the data of another."""
        return self.data.shape if self.autoencoder is None else self.autoencoder.code_shape(self.data.shape)

    @property
    def levels(self) -> int | None:
        """Of the model's values: codes have none."""
        return self.data.levels if self.autoencoder is None else None

    @property
    def dequantised(self) -> bool:
        """Whether it was trained on dequantised levels, and not on the levels themselves or on continuous values."""
        return self.levels is not None and bool(self.config.transform.get("dequantise"))

    @property
    def low(self) -> float:
        """Where the range of the images begins."""
        return float(self.config.transform.low if self.autoencoder is None else self.autoencoder.low)

    @property
    def high(self) -> float:
        """Where the range of the images ends."""
        return float(self.config.transform.high if self.autoencoder is None else self.autoencoder.high)

    @property
    def num_classes(self) -> int | None:
        return self.data.num_classes if self.config.training.get("labels") else None

    @property
    def classes(self) -> list[int]:
        """The classes that had examples in training; all, where the examples were not counted."""
        counts = self.data.class_counts
        return [number for number in range(self.num_classes or 0) if not counts or counts[number]]

    @property
    def label_required(self) -> bool:
        """Whether the network was always given its class, so that it means nothing without one."""
        return build.label_required(self.config, self.num_classes)

    def new_denoiser(self) -> models.Denoiser:
        return build.denoiser(self.config, self.shape, self.num_classes, self.sde).to(self.device)

    def new_model(self) -> Model:
        """The untrained denoiser with the path, whose weights belong to the model where it is learned."""
        model: Model = Model(self.new_denoiser(), self.sde).to(self.device)
        return model

    def on(self, data: str | None) -> "Run":
        """The same run on another data set, given as a spec. None keeps its own."""
        if data is not None:
            self.config.data = build.spec(build.DATASETS, data)
        return self

    def in_tiles_of(self, tile: int) -> "Run":
        """The same run, which decodes codes in tiles of this side; 0 for whole images.

        Raises:
            ValueError: for other runs than latent ones, or less than 2 codes.
        """
        if tile and (self.autoencoder is None or tile < 2):
            kind = "a run without an autoencoder" if self.autoencoder is None else f"{tile}"
            raise ValueError(f"expected --tile of at least 2 for a latent run, got {kind}: leave it out")
        self.tile = tile
        return self

    def dataset(self, split: str) -> Dataset:
        return self.accept(open_split(self.config.data, split))

    @cached_property
    def tokenizer(self) -> WordPieces:
        """Of a run with captions."""
        return tokenizer_of(self.workdir, self.config, lambda: captions_in(self.dataset("train")))

    @cached_property
    def examples(self) -> Dataset:
        """The first items of the test split, whose conditioning pictures are given."""
        dataset = self.dataset("test")
        return dataset.at(np.arange(min(EXAMPLES, len(dataset))))

    def accept(self, dataset: Dataset) -> Dataset:
        """The data set, with its classes numbered as in training: see `DataFacts.accept`. Warns of odd units."""
        dataset = self.data.accept(dataset, self.num_classes is not None)
        if line := odd_units_of(dataset, self.low, self.high):
            warnings.warn(f"{dataset.name}: {line}", stacklevel=2)
        return dataset

    def in_range(self, stored: Tensor) -> Tensor:
        """Stored values (B, *D) within `low` .. `high`, without noise: integers at the centres of their cells."""
        if self.data.levels is None:
            return stored.float()
        return cell_centres(stored, self.data.levels, low=self.low, high=self.high)

    def centred(self, stored: Tensor) -> Tensor:
        """Stored values (B, *D) as the model's: `in_range`, or for a latent run the mean codes of that."""
        x = self.in_range(stored)
        if self.autoencoder is None:
            return x
        return _in_parts(self.autoencoder.scaled.encode, x, encoded_at_once(self.data.shape), self.device)

    def to_stored(self, x: Tensor) -> Tensor:
        """The model's values as the data set stores them: integers, or floats unchanged. Codes are decoded."""
        if self.autoencoder is not None:
            x = _in_parts(self.decode, x, encoded_at_once(self.data.shape), self.device)
        x = x.cpu()
        if self.data.levels is None:
            return x
        k = quantise(x, self.data.levels, low=self.low, high=self.high)
        return k.to(torch.uint8) if self.data.levels <= 256 else k.to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """The images of a latent run's codes, in tiles where `tile` is set."""
        assert self.autoencoder is not None
        scaled = self.autoencoder.scaled
        return in_tiles(scaled, codes, self.tile) if self.tile else scaled.decode(codes)

    def viewable(self, stored: Tensor) -> Tensor:
        """Stored values within [0, 1], for pictures. Continuous images are scaled by their range, points are not."""
        if self.data.levels is not None:
            return stored.float() / (self.data.levels - 1)
        if self.data.shape == (2,):
            return stored
        return (stored - stored.min()) / (stored.max() - stored.min()).clamp(min=1e-12)

    def save(self) -> None:
        """Write config.json, a latent run's copy of its autoencoder, and the tokeniser of captions."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        if self.autoencoder is not None and not has_autoencoder(self.workdir):
            write_autoencoder(self.workdir, self.autoencoder)
        if takes_captions(self.config):
            with atomic_file(self.workdir / TOKENIZER) as part:
                part.write_text(self.tokenizer.text)
        write_json(self._file(self.workdir), self.described())

    def described(self) -> dict[str, Any]:
        return {"version": VERSION, "config": json.loads(self.config.to_json()), "data": asdict(self.data)}

    @staticmethod
    def _file(workdir: Path) -> Path:
        return workdir / "config.json"


def with_labels(run: Run) -> Run:
    """The run as one whose network is given classes: those of its data, for a classifier.

    Raises:
        ValueError: if its data have none.
    """
    if run.data.num_classes is None:
        raise ValueError(
            f"expected data with classes for a classifier, got {run.data.name}, which has none: train a run on data "
            "with labels"
        )
    config = ml_collections.ConfigDict(json.loads(run.config.to_json()))
    config.training.update(labels=True, label_dropout=0.0)
    config.conditioner = None
    return Run(run.workdir, config, run.data, run.device, run.tile)


def device_of(name: str | None) -> torch.device:
    """The device of this name, or by default the GPU of this process, or the CPU.

    Raises:
        ValueError: if this machine has no such device.
    """
    try:
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun sets it
        device = torch.device(name or (gpu if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        gpus = f"PyTorch sees {torch.cuda.device_count()} GPUs here"
        raise ValueError(f"expected a device of this machine (cpu, cuda, cuda:1), got {name!r}: {gpus}") from None
    return device


def open_run(workdir: Path, device: str | None = None) -> Run:
    """The run of a denoiser in a working directory.

    Raises:
        ValueError: as `read_run`, or if what is trained there is an autoencoder.
    """
    run = read_run(workdir, device)
    if build.is_autoencoder(run.config):
        raise ValueError(
            f"expected a run of a denoiser in {workdir}, got an autoencoder: give another --workdir, and name this one "
            f"by --config.autoencoder={workdir}"
        )
    return run


def read_run(workdir: Path, device: str | None = None) -> Run:
    """The run in a working directory, of a denoiser or of an autoencoder.

    Raises:
        ValueError: if there is none, its config.json cannot be read, or a part of it cannot be imported.
    """
    file = workdir / "config.json"
    if not file.is_file():
        runs = [str(found.parent) for place in (workdir, workdir.parent) for found in place.glob("*/config.json")]
        remedy = suggestion(str(workdir), runs) or ": train one with --mode=train, or give another --workdir"
        raise ValueError(f"expected a run in {workdir}, found no config.json{remedy}")
    try:
        saved = json.loads(file.read_text())
        config = dict(saved["config"])
        facts = DataFacts.read(saved["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {file} ({error!r}): restore it, or train again in another directory") from None
    return Run(workdir, ml_collections.ConfigDict(build.modern_config(config)), facts, device_of(device))


def _in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int, device: torch.device) -> Tensor:
    """A function of `x (B, *D)`, `size` items at once on a device; the result is where x was."""
    with torch.no_grad():
        return torch.cat([function(part.to(device)).to(x.device) for part in torch.split(x, size)])


def stored_tensor(dataset: Dataset) -> Tensor:
    """The stored values of a data set, (N, *D)."""
    return tensor(dataset.x[:])
