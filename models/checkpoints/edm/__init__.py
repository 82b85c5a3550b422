"""Checkpoints of EDM (Karras et al. 2022)."""

from scorefield.models.checkpoints.edm.importer import spec_of

__all__ = ["spec_of"]
