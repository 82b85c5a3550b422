"""Latent models of diffusers: a folder with unet/, scheduler/, and vae/ or vqvae/."""

import dataclasses
from pathlib import Path

from scorefield.models.checkpoints.autoencoders.diffusers import PARTS
from scorefield.models.checkpoints.diffusers.folder import read_folder
from scorefield.models.checkpoints.report import LoadReport, fitted, noise_found
from scorefield.models.latent import Latent
from scorefield.sde_lib import SDE


def load_latent(folder: str | Path) -> tuple[Latent, SDE, LoadReport]:
    """The denoiser of a latent model with its autoencoder, the path it was trained on, and how well its U-Net fitted.

    The U-Net of a `UNet2DConditionModel` takes its tokens as `context (B, M, d)`, `context_mask (B, M)`, and images
    beside z as `concat (B, c, h, w)`, wherever the denoiser is called; texts are encoded outside. diffusers is needed
    for architectures alone that are not ours.

    Args:
        folder: a pipeline's of diffusers.

    Raises:
        ValueError: if a part is missing, cut short, or of a class that is not known.
    """
    folder = Path(folder)
    spec, states = read_folder(folder)
    if spec.first_stage is None:
        raise ValueError(f"expected an autoencoder in {folder}, as {' or '.join(PARTS)}, and there is none")
    ((weights, state),) = states.items()
    denoiser, report = fitted(spec, state, weights)
    if not report.fits:
        raise ValueError(f"{folder} does not fit: {report}")
    first = spec.first_stage
    latent = Latent(denoiser, first.module, first.scale, first.shift)
    latent.eval().requires_grad_(False)
    if not spec.tokens:
        report = dataclasses.replace(report, noise_found=noise_found(denoiser, spec.sde, spec.shape))
    return latent, spec.sde, report
