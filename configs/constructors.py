"""Constructors for the tables of names, where a class alone would not do: its keywords are not what a spec says."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from scorefield import likelihood, sde_lib, solvers
from scorefield.evaluation.features import CLIP, DINOV2, Features, Inception, OfTransformer, StoredAs, files
from scorefield.models.levels import Levels
from scorefield.models.networks.code_encoder import CodeEncoder
from scorefield.solvers import grids
from scorefield.solvers.variables import SoftClippedLogSNR
from scorefield.training.data.files.paths import data_root


def levels(cells: tuple[float, float], probabilities: tuple[float, ...] | None = None) -> Levels:
    """Mean and deviation of each pixel's level in the place of EDM's coefficients; the data gives the probabilities."""
    if probabilities is None:
        raise ValueError("expected the probabilities of the levels, got none: training counts them in integer data")
    return Levels(tuple(probabilities), cells)


def mulan(
    shape: tuple[int, ...],
    low: float = -5.0,
    high: float = 13.3,
    size: int = 50,
    active: int = 15,
    width: int = 256,
    encoder_width: int = 32,
    encoder_blocks: int = 2,
) -> sde_lib.MultivariateVP:
    """A path with a noise level for each dimension that depends on a latent code (Sahoo et al. 2024)."""
    encoder = CodeEncoder(shape, size, encoder_width, encoder_blocks)
    return sde_lib.MultivariateVP(shape, low, high, size, active, width, encoder)


def adams_moulton(
    order: int = 3, low: float = 0.02, high: float = 10.0, spread: float = 0.5, time_weight: float = 0.0
) -> solvers.Solver:
    """Implicit Adams steps in the soft-clipped log-SNR, for likelihoods."""
    return solvers.AdamsMoulton(order, SoftClippedLogSNR(low, high, spread, time_weight))


def importance(samples: int = 8) -> likelihood.Uniform:
    """Uniform dequantisation, averaged over several draws inside the logarithm (Burda et al. 2016)."""
    return likelihood.Uniform(samples)


def no_distance() -> None:
    """No perceptual distance."""


def optimal(sde: sde_lib.SDE, steps: int, workdir: Path, file: str = "grid.json") -> Tensor:
    """The grid that `--mode=grid` measured for this run."""
    path = workdir / file
    if not path.is_file():
        raise ValueError(f"expected a measured grid in {path}: measure one with --mode=grid --workdir={workdir}")
    try:
        content = json.loads(path.read_text())
        measured = grids.StepDensity(tuple(map(float, content["log_snr"])), tuple(map(float, content["density"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error!r}): measure it again with --mode=grid") from None
    return grids.optimal(sde, steps, measured)


def inception(stored_as: StoredAs, device: torch.device, resize: str = "tf", weights: str = "") -> Features:
    """Inception of 2015-12-05, the network of FID. `weights` is its file, or a folder that has it.

    By default, the file is looked for in $SCOREFIELD_WEIGHTS and in the folder of the data sets.
    """
    return Inception(stored_as, _weights("inception", weights), resize, device)


def dino(stored_as: StoredAs, device: torch.device, resize: str = "pil", weights: str = "") -> Features:
    """DINOv2, the network of FD-DINOv2. `weights` is a file or a folder, as for inception."""
    return OfTransformer(stored_as, DINOV2, _weights("dino", weights), resize, device)


def clip(stored_as: StoredAs, device: torch.device, resize: str = "torch", weights: str = "") -> Features:
    """CLIP, the network of CMMD. `weights` is a file or a folder, as for inception."""
    return OfTransformer(stored_as, CLIP, _weights("clip", weights), resize, device)


def _weights(kind: str, place: str) -> Path:
    folders = [Path(os.environ["SCOREFIELD_WEIGHTS"]).expanduser()] if os.environ.get("SCOREFIELD_WEIGHTS") else []
    return files.find(kind, place, [*folders, data_root(None)])
