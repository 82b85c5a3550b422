"""Models of latent-diffusion (Rombach et al. 2022) by their tensors' names: U-Net, first stage and conditioner."""

from scorefield.models.checkpoints.latent_diffusion.importer import read_checkpoint

__all__ = ["read_checkpoint"]
