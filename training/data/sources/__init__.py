"""Public data sets by name, and toy data."""
