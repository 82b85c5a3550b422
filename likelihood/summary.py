"""What is reported of log-probabilities: bits for each dimension, and the mean over a set with its error."""

import math

from torch import Tensor


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """-log_prob / (dims log 2), for log_prob in nats: bits for each dimension."""
    return -log_prob / (dims * math.log(2))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over a set and its standard error, std / sqrt(n); the error of one value is nan."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
