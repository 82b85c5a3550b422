"""Latent models of diffusers: a folder with unet/, scheduler/, and vae/ or vqvae/."""

import dataclasses
from pathlib import Path

from scorefield.models.checkpoints.autoencoders import load_autoencoder_checkpoint
from scorefield.models.checkpoints.diffusers import importer as diffusers
from scorefield.models.checkpoints.diffusers.modules import UNETS
from scorefield.models.checkpoints.report import LoadReport, fitted, noise_found
from scorefield.models.latent import Latent
from scorefield.sde_lib import SDE


def load_latent(folder: str | Path) -> tuple[Latent, SDE, LoadReport]:
    """The denoiser of a latent model with its autoencoder, the path it was trained on, and how well its U-Net fitted.

    A `UNet2DConditionModel` takes its conditioning as keywords, `encoder_hidden_states` among them, wherever the
    denoiser is called; texts are encoded outside.

    Args:
        folder: a pipeline's of diffusers, which must be installed.

    Raises:
        ValueError: if a part is missing, cut short, or of a class that is not known here.
    """
    folder = Path(folder)
    kind, config = diffusers.configuration(folder / "unet" / "config.json")
    if kind not in UNETS:
        raise ValueError(f"expected one of {', '.join(UNETS)} in {folder / 'unet'}, got {kind}")
    embedding = config.get("time_embedding_type", "positional") if kind == "UNet2DModel" else "positional"
    values = {**diffusers.SCHEDULER, **(diffusers.scheduler_of(folder) or {}), "time_embedding_type": embedding}
    sde, precondition = diffusers.path(values)
    channels, size = config.get("in_channels", 4), config.get("sample_size") or 64
    shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
    spec = diffusers.wrapped_unet(kind, config, precondition, sde, shape, low=float("-inf"))
    denoiser, report = fitted(spec, diffusers.state_of(folder / "unet"), "as stored")
    if not report.fits:
        raise ValueError(f"{folder / 'unet'} does not fit: {report}")
    opened = load_autoencoder_checkpoint(folder, "diffusers")
    latent = Latent(denoiser, opened.module, opened.scale or 1.0, opened.shift or 0.0)
    latent.eval().requires_grad_(False)
    if kind == "UNet2DModel":
        # The other needs a text to recognise noise.
        report = dataclasses.replace(report, noise_found=noise_found(denoiser, sde, shape))
    return latent, sde, report
