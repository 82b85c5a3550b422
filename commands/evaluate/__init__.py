"""Metrics of samples: of a run's own, or of files."""
