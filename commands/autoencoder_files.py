"""An autoencoder as two files of a directory: its weights, and JSON that says what they are.

DIRECTORY/autoencoder.safetensors   the weights
DIRECTORY/autoencoder.json          network, data, range, and the shift and scale of its codes
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_collections
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from scorefield.commands.outputs import write_json
from scorefield.configs import build
from scorefield.models.code_statistics import CodeStatistics
from scorefield.models.latent import ScaledAutoencoder
from scorefield.sde_lib.arguments import shown
from scorefield.training.checkpoints.atomic import atomic_file, write_tensors

WEIGHTS, FACTS = "autoencoder.safetensors", "autoencoder.json"
VERSION = 1
PIXELS = 1 << 18  # of all images that go through an autoencoder at once


@dataclass(frozen=True)
class StoredAutoencoder:
    """An autoencoder, and what is known of it.

    Args:
        module: with its weights, in evaluation mode.
        net: its spec, of the table AUTOENCODERS.
        data: the spec of the data it was trained on; None if that is not known.
        shape: of an image (C, H, W) of that data; the size may be another where it is used.
        levels: of that data.
        low, high: the range of images that it takes.
        scale, shift: of its codes, one for each channel or one for all.
        measured: how scale and shift were measured (`CodeStatistics`, and the data's name), or None.
        source: where it comes from.
    """

    module: nn.Module
    net: ml_collections.ConfigDict
    shape: tuple[int, ...]
    levels: int | None = 256
    low: float = -1.0
    high: float = 1.0
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    data: ml_collections.ConfigDict | None = None
    measured: dict[str, Any] | None = None
    source: str = ""

    @property
    def factor(self) -> int:
        """The f: how many pixels of a side make a code."""
        return int(self.module.factor)  # type: ignore[arg-type]

    @property
    def code_channels(self) -> int:
        """Of a code."""
        return int(self.module.code_channels)  # type: ignore[arg-type]

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the codes (c, h, w) of images (C, H, W).

        Raises:
            ValueError: if these are no images that it takes.
        """
        channels = int(self.module.channels)  # type: ignore[arg-type]
        if len(shape) != 3 or shape[0] != channels or shape[1] % self.factor or shape[2] % self.factor:
            raise ValueError(
                f"expected images of {channels} channels whose sides divide by {self.factor}, as this autoencoder "
                f"takes, got {shape}: change the size of the data, or train another autoencoder"
            )
        return (self.code_channels, shape[1] // self.factor, shape[2] // self.factor)

    def image_shape(self, codes: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the images (C, H, W) of codes (c, h, w)."""
        return (self.shape[0], self.factor * codes[1], self.factor * codes[2])

    @cached_property
    def scaled(self) -> ScaledAutoencoder:
        """The autoencoder in the coordinates of diffusion."""
        device = next(self.module.parameters()).device
        return ScaledAutoencoder(self.module, self.scale, self.shift).to(device).eval().requires_grad_(False)

    @cached_property
    def sha256(self) -> str:
        """Of the weights by their names; scale and shift do not count."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def with_statistics(self, found: CodeStatistics, name: str) -> "StoredAutoencoder":
        """The same with a measured scale and shift, over images of the data of this name."""
        measured = {"data": name, **dataclasses.asdict(found)}
        return dataclasses.replace(self, scale=found.scale, shift=found.shift, measured=measured)


def write_autoencoder(folder: Path, stored: StoredAutoencoder) -> list[Path]:
    """Write both files, each completely or not at all; the weights come first."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS) as part:
        write_tensors(part, stored.module.state_dict())
    facts = {
        "version": VERSION,
        "net": json.loads(stored.net.to_json()),
        "data": None if stored.data is None else json.loads(stored.data.to_json()),
        "shape": list(stored.shape),
        "levels": stored.levels,
        "low": stored.low,
        "high": stored.high,
        "scale": list(stored.scale),
        "shift": list(stored.shift),
        "measured": stored.measured,
        "source": stored.source,
        "sha256": stored.sha256,
    }
    return [folder / WEIGHTS, write_json(folder / FACTS, facts)]


def has_autoencoder(folder: Path) -> bool:
    """Whether a directory holds an autoencoder's files."""
    return (folder / WEIGHTS).is_file() and (folder / FACTS).is_file()


def stored_sha256(folder: Path) -> str | None:
    """The hash of the weights in a directory, as its JSON says it, or None where there is no autoencoder."""
    found = _facts(folder).get("sha256")
    return None if found is None else str(found)


def same_codes(folder: Path, other: Path) -> bool:
    """Whether two directories have the same autoencoder, with the same scale and shift, as their JSON says."""
    first, second = _facts(folder), _facts(other)
    return "sha256" in first and all(first.get(key) == second.get(key) for key in ("sha256", "scale", "shift"))


def _facts(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def read_autoencoder(folder: Path, device: torch.device | str = "cpu") -> StoredAutoencoder:
    """The autoencoder of a directory, in evaluation mode, without gradients.

    Raises:
        ValueError: if there is none, it does not read, or its weights are other ones than its JSON says.
    """
    if not has_autoencoder(folder):
        raise ValueError(
            f"expected an autoencoder in {folder}, found no {WEIGHTS} with {FACTS}: train one with "
            "--mode=train_autoencoder, or make one with --mode=import"
        )
    try:
        facts = json.loads((folder / FACTS).read_text())
        net = build.spec(build.AUTOENCODERS, facts["net"])
        shape = tuple(facts["shape"])
        module: nn.Module = build.build(build.AUTOENCODERS, net, channels=shape[0])
        module.load_state_dict(load_file(folder / WEIGHTS))
        stored = StoredAutoencoder(
            module.to(device).eval().requires_grad_(False),
            net,
            shape,
            facts["levels"],
            facts["low"],
            facts["high"],
            tuple(facts["scale"]),
            tuple(facts["shift"]),
            None if facts["data"] is None else build.spec(build.DATASETS, facts["data"]),
            facts["measured"],
            facts["source"],
        )
        expected = facts["sha256"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"the autoencoder in {folder} does not read ({shown(error)}): restore its two files, or train it again"
        ) from None
    if stored.sha256 != expected:
        raise ValueError(
            f"{folder / WEIGHTS} has other weights ({stored.sha256[:12]}) than {FACTS} describes ({expected[:12]}): "
            "restore the two files of one autoencoder"
        )
    return stored


def encoded_at_once(shape: tuple[int, ...]) -> int:
    """How many images of a shape (C, H, W) an autoencoder takes at once, so that memory is bounded."""
    return max(1, PIXELS // (shape[-1] * shape[-2]))
