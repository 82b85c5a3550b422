"""Opening somebody else's autoencoder: the file, whose it is, and how well its weights fitted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scorefield.models.checkpoints.autoencoders import diffusers, latent_diffusion, taesd
from scorefield.models.checkpoints.autoencoders.spec import AutoencoderSpec
from scorefield.models.checkpoints.report import LoadReport, filled
from scorefield.models.hyperparameters import settings_of
from scorefield.models.latent import Channels
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.sde_lib.arguments import shown

# How to build the autoencoder at a path, `spec_of(path, **architecture)`.
SOURCES: dict[str, Callable[..., AutoencoderSpec]] = {
    "diffusers": diffusers.spec_of,
    "latent_diffusion": latent_diffusion.spec_of,
    "taesd": taesd.spec_of,
}


@dataclass(frozen=True)
class OpenedAutoencoder:
    """An autoencoder with its weights, in evaluation mode and without gradients.

    Args:
        module: the network.
        name_of_class: of the network.
        settings: its constructor's keywords.
        shape: of the images that it was trained on, (C, H, W); another size is fine.
        scale: with which diffusion takes its codes, scale (z - shift); None where the checkpoint does not tell.
        shift: likewise.
        report: how the weights fitted.
    """

    module: ImageAutoencoder
    name_of_class: str
    settings: dict[str, Any]
    shape: tuple[int, int, int]
    scale: Channels | None
    shift: Channels | None
    report: LoadReport


def load_autoencoder_checkpoint(path: str | Path, source: str, **architecture: Any) -> OpenedAutoencoder:
    """Somebody else's autoencoder as ours.

    Args:
        path: the file, or a folder for diffusers and TAESD.
        source: whose it is: one of `SOURCES`.
        architecture: what the weights do not tell, by the source's own names.

    Raises:
        ValueError: for an unknown source, a file that does not read, or weights that are not of this architecture.
    """
    if source not in SOURCES:
        raise ValueError(f"expected a source of autoencoders among {', '.join(SOURCES)}, got {source!r}")
    try:
        spec = SOURCES[source](Path(path), **architecture)
        module = spec.build()
        report = filled(module, spec, spec.state, spec.weights)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is not of {source}, or not of this architecture: {shown(error)}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if not report.fits:
        raise ValueError(f"{path} does not fit: {report}; give its architecture, or another source")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise ValueError(f"{path} has weights that are not finite: it is damaged")
    shape = (module.channels, *spec.size)
    module.eval().requires_grad_(False)
    settings = settings_of(module)
    return OpenedAutoencoder(module, type(module).__name__, settings, shape, spec.scale, spec.shift, report)


def holds_autoencoder(path: str | Path, source: str) -> bool:
    """Whether there is an autoencoder at a path, and no latent model that it belongs to.

    Raises:
        ValueError: for a file of latent-diffusion that does not read.
    """
    if source == "latent_diffusion":
        return not latent_diffusion.holds_unet(Path(path))
    if source != "diffusers":
        return source in SOURCES
    return not (Path(path) / "unet").is_dir() and diffusers.folder_of(Path(path)) is not None
