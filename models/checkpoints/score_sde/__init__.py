"""Checkpoints of score_sde_pytorch."""
