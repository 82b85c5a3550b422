"""EDM2's averages: power-function profiles in training, snapshots on disk, an average of any length afterwards.

Two averages are followed, and stored at intervals. An average of another length is the combination of the stored ones
whose profile is nearest (Karras et al. 2024, arXiv 2312.02696, Section 3.2).

    FOLDER/0000001280/power_0.05.safetensors    the average of relative length 0.05 after 1280 images
                      power_0.1.safetensors
                      SHA256SUMS
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from scorefield.training.averages import profiles
from scorefield.training.averages.ema import average_of, follow
from scorefield.training.checkpoints.atomic import atomic_dir, verify, write_tensors
from scorefield.training.model import file_name, names_in, names_of, tensors_of

LENGTHS = (0.05, 0.10)


class PowerEMA:
    """theta_g <- beta theta_g + (1 - beta) theta,  beta = (1 - batch / images)^(g + 1), for every length's exponent g.

    Args:
        model: whose weights to average.
        lengths: sigma_rel of each average, its standard deviation over the length of training.
    """

    def __init__(self, model: nn.Module, lengths: Sequence[float] = LENGTHS) -> None:
        self.lengths = tuple(lengths)
        self._gammas = [profiles.exponent(length) for length in self.lengths]
        self.models = [average_of(model) for _ in self.lengths]

    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Move the averages towards the weights after a step of `batch` images, the last being the `images`-th."""
        for average, gamma in zip(self.models, self._gammas, strict=True):
            follow(average, model, 1 - profiles.beta(gamma, images, batch))

    def named(self) -> dict[str, nn.Module]:
        """The averages by the names of their files."""
        return {f"power_{length:g}": model for length, model in zip(self.lengths, self.models, strict=True)}

    def store(self, folder: Path, images: int, dtype: torch.dtype = torch.float16) -> Path:
        """Write a snapshot of the averages.

        Raises:
            ValueError: if a weight is beyond the type's range.
        """
        for model in self.models:
            for name, weight in model.named_parameters():
                if bool((weight.isfinite() & (weight.abs() > torch.finfo(dtype).max)).any()):
                    raise ValueError(f"{name} is too large for {dtype}: set training.snapshot_dtype to float32")
        with atomic_dir(place := folder / f"{images:010d}") as part:
            for (name, model), length in zip(self.named().items(), self.lengths, strict=True):
                buffers = {file_name(own) for own, _ in model.named_buffers()}  # which keep their digits
                tensors = tensors_of(model)
                kinds = dict.fromkeys(tensors.keys() - buffers, dtype)
                write_tensors(part / f"{name}.safetensors", tensors, kinds, images=images, sigma_rel=length)
        return place


@dataclass(frozen=True)
class Snapshot:
    """A stored average: its file, the images that training had seen, and its relative length."""

    file: Path
    images: int
    sigma_rel: float

    @property
    def profile(self) -> tuple[float, float]:
        """(t, gamma)."""
        return float(self.images), profiles.exponent(self.sigma_rel)


def snapshots(folder: Path) -> tuple[list[Snapshot], list[str]]:
    """All valid snapshots of a folder, oldest first; and what is wrong with the others."""
    valid, notes = [], []
    for place in sorted(path for path in folder.glob("[0-9]*") if path.is_dir()):
        if (wrong := verify(place)) is not None:
            notes.append(f"{wrong}: left out")
            continue
        for file in sorted(place.glob("power_*.safetensors")):
            with safe_open(file, "pt") as opened:
                about = opened.metadata()
            valid.append(Snapshot(file, int(about["images"]), float(about["sigma_rel"])))
    return valid, notes


def reconstruct(stored: Sequence[Snapshot], sigma_rel: float, model: nn.Module) -> dict[str, Any]:
    """Load the average of a length into `model`, at the newest snapshot's time; buffers are those of that snapshot.

    Returns:
        A report: the images, the remaining distance between the profiles, the sum of the coefficients (near 1) and
        their norm (by which the rounding of the stored weights grows).

    Raises:
        ValueError: if there is no snapshot, the length is out of range, or the weights are of another network.
    """
    if not stored:
        raise ValueError(
            "expected snapshots of the averages, found none: train with --config.training.snapshot_every=IMAGES"
        )
    last = max(stored, key=lambda each: each.images)
    gamma = profiles.exponent(sigma_rel)
    x, left = profiles.coefficients([each.profile for each in stored], float(last.images), gamma)
    buffers = dict(model.named_buffers())
    with ExitStack() as stack, torch.no_grad():
        files = {each.file: stack.enter_context(safe_open(each.file, "pt")) for each in stored}
        ours = model.state_dict()
        theirs = {file: names_in(list(opened.keys()), model) for file, opened in files.items()}
        if any({*names} != {*names_of(model)} for names in theirs.values()):
            raise ValueError(f"{last.file} is of another architecture than this run's network: restore config.json")
        for key, name in names_of(model).items():
            weight = ours[name]
            newest: Tensor = files[last.file].get_tensor(theirs[last.file][key])
            if name in buffers or not weight.is_floating_point():
                weight.copy_(newest)
                continue
            total = torch.zeros(weight.shape, dtype=torch.float64)
            for each, share in zip(stored, x, strict=True):
                total.add_(files[each.file].get_tensor(theirs[each.file][key]).double(), alpha=float(share))
            weight.copy_(total)
    return {
        "images": last.images,
        "sigma_rel": sigma_rel,
        "gamma": gamma,
        "snapshots": len(stored),
        "profile_error": left,
        "sum_of_coefficients": float(x.sum()),
        "norm_of_coefficients": float((x**2).sum() ** 0.5),
    }
