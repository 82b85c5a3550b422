"""Checkpoints of EDM."""
