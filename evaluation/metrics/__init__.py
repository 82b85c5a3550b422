"""Metrics of features (N, d): of samples beside a reference, or of samples alone."""
