"""Opening a checkpoint: the file, whose it is, and what its weights do not tell."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorefield.models.checkpoints import (
    ddim,
    diffusers,
    dit,
    edm,
    guided_diffusion,
    latent_diffusion,
    ncsnv2,
    own,
    score_sde,
)
from scorefield.models.checkpoints.files import State, read, weights_of
from scorefield.models.checkpoints.report import LoadReport, filled, noise_found
from scorefield.models.checkpoints.spec import CheckpointSpec
from scorefield.models.denoiser import Denoiser
from scorefield.sde_lib import SDE
from scorefield.sde_lib.arguments import shown

# Files: how to build the network of a state dict, `spec_of(state, **architecture)`.
STATES: dict[str, Callable[..., CheckpointSpec]] = {
    "score_sde_pytorch": score_sde.spec_of,
    "ncsnv2": ncsnv2.spec_of,
    "ddim": ddim.spec_of,
    "edm": edm.spec_of,
    "guided_diffusion": guided_diffusion.spec_of,
    "dit": dit.spec_of,
    "diffusers": diffusers.spec_of,
}
# Folders, and files of several parts: the same with the weights, `read_folder(path, ema, both, **architecture)`.
FOLDERS: dict[str, Callable[..., tuple[CheckpointSpec, dict[str, State]]]] = {
    "diffusers": diffusers.read_folder,
    "scorefield": own.read_folder,
    "latent_diffusion": latent_diffusion.read_checkpoint,
}
SOURCES = tuple({**STATES, **FOLDERS})


def load_checkpoint(
    path: str | Path, source: str, *, ema: bool = True, **architecture: Any
) -> tuple[Denoiser, SDE, LoadReport]:
    """Somebody else's checkpoint as a denoiser, with the path it was trained on and how well the weights fitted.

    Args:
        path: the file, or for diffusers a folder.
        source: whose it is: one of `SOURCES`.
        ema: the averaged weights where the file has them, rather than the raw ones.
        architecture: what the weights do not tell, by the source's own names.

    Raises:
        ValueError: for an unknown source, a file that does not read or would run code, or weights that are not of this
            architecture.
    """
    opened = open_checkpoint(Path(path), source, architecture, ema=ema)
    return opened.denoiser, opened.spec.sde, opened.report


@dataclass(frozen=True)
class Opened:
    """A checkpoint with its network built and filled.

    Args:
        spec: how its network was built.
        denoiser: with the requested weights.
        report: how these fitted.
        raw: the raw weights by the names of the denoiser's, where it has averaged ones and `both` is set.
    """

    spec: CheckpointSpec
    denoiser: Denoiser
    report: LoadReport
    raw: State | None = None


def open_checkpoint(
    path: Path, source: str, architecture: Mapping[str, Any], *, ema: bool = True, both: bool = False
) -> Opened:
    """What `load_checkpoint` returns, and how the network was built.

    Args:
        path: as there.
        source: as there.
        architecture: as there.
        ema: as there.
        both: also the raw weights, where `ema` takes averaged ones.

    Raises:
        ValueError: as there.
    """
    if source not in SOURCES:
        raise ValueError(f"expected a source among {', '.join(SOURCES)}, got {source!r}")
    try:
        spec, states = _read(path, source, ema, both, architecture)
        if not spec.sde.t_min < spec.sde.t_max or not spec.low < spec.high:
            raise ValueError(f"expected a path and a range from small to large, got {shown(spec.sde)} and {spec.low}")
        network, raw = spec.build(), None
        denoiser = spec.denoiser(network).eval().requires_grad_(False)
        *others, (weights, state) = states.items()
        for kind, other in others:
            _check(denoiser, spec, filled(network, spec, other, kind))
            raw = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        report = _check(denoiser, spec, filled(network, spec, state, weights))
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is not of {source}, or not of this architecture: {shown(error)}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return Opened(spec, denoiser, report, raw)


def _check(denoiser: Denoiser, spec: CheckpointSpec, report: LoadReport) -> LoadReport:
    if not report.fits:
        raise ValueError(f"does not fit: {report}; give its architecture, or another source")
    if spec.tokens:
        return report
    return dataclasses.replace(report, noise_found=noise_found(denoiser, spec.sde, spec.shape))


def _read(
    path: Path, source: str, ema: bool, both: bool, architecture: Mapping[str, Any]
) -> tuple[CheckpointSpec, dict[str, State]]:
    """How to build the network, and its weights by their kind: the requested ones come last."""
    if source not in STATES or (source in FOLDERS and not path.is_file()):
        return FOLDERS[source](path, ema, both, **architecture)
    saved = read(path)
    state, weights = weights_of(saved, ema)
    others, kind = weights_of(saved, False) if both else (state, weights)
    return STATES[source](state, **architecture), {kind: others, weights: state}
