"""Checkpoints and modules of diffusers."""

from scorefield.models.checkpoints.diffusers.importer import read_folder, spec_of

__all__ = ["read_folder", "spec_of"]
