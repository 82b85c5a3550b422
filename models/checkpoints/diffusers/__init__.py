"""Checkpoints and modules of diffusers."""
