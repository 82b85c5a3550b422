"""Checkpoints and modules of diffusers."""

from scorefield.models.checkpoints.diffusers.folder import read_folder
from scorefield.models.checkpoints.diffusers.importer import spec_of

__all__ = ["read_folder", "spec_of"]
