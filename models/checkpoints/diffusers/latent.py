"""Latent models of diffusers: a folder with unet/, scheduler/, and vae/ or vqvae/."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from scorefield.models.checkpoints.diffusers import importer as diffusers
from scorefield.models.checkpoints.diffusers.modules import AUTOENCODERS, UNETS, DiffusersAutoencoder
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
        ValueError: if a part is missing, cut short, or of a class that is none of `UNETS` and `AUTOENCODERS`.
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
    autoencoder, scale, shift = _autoencoder(folder)
    latent = Latent(denoiser, autoencoder, scale, shift)
    latent.eval().requires_grad_(False)
    if kind == "UNet2DModel":
        # The other needs a text to recognise noise.
        report = dataclasses.replace(report, noise_found=noise_found(denoiser, sde, shape))
    return latent, sde, report


def _autoencoder(folder: Path) -> tuple[nn.Module, Any, Any]:
    part = next((folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), folder / "vae")
    kind, config = diffusers.configuration(part / "config.json")
    if kind not in AUTOENCODERS:
        raise ValueError(f"expected one of {', '.join(AUTOENCODERS)} in {part}, got {kind}")
    autoencoder = DiffusersAutoencoder(kind, **config)
    state = diffusers.state_of(part)
    found = {}
    for entry in diffusers.wrapped(autoencoder):
        name = next((name for name in entry.theirs[0].split("|") if name in state), None)
        if name is None or state[name].shape != autoencoder.state_dict()[entry.ours].shape:
            raise ValueError(f"{part} does not fit: {entry.theirs[0]} is missing, or of another shape")
        found[entry.ours] = state[name]
    autoencoder.load_state_dict(found)
    own = autoencoder.autoencoder.config
    scale, shift = own.scaling_factor, getattr(own, "shift_factor", None) or 0.0
    if getattr(own, "latents_mean", None) is not None and getattr(own, "latents_std", None) is not None:
        shift, scale = list(own.latents_mean), [scale / std for std in own.latents_std]
    return autoencoder, scale, shift
