"""Checkpoints of score_sde_pytorch (Song et al. 2021)."""

from scorefield.models.checkpoints.score_sde.importer import spec_of

__all__ = ["spec_of"]
