"""Features of samples, on which metrics are computed."""
