"""What `tune` makes least: the distance from the flow, or of the features of samples from those of the data."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.features import open_features
from scorefield.commands.trained import Trained
from scorefield.evaluation.features import StoredAs
from scorefield.evaluation.metrics.estimate import Estimate
from scorefield.evaluation.metrics.kernel import kernel_distance
from scorefield.training.data.batches import tensor

REFERENCES = 1000  # training data, of whose features samples have a distance


class Measure(Protocol):
    """A number of samples, from rows that are computed sample by sample."""

    gain: str  # what `compared` is: ratio or difference
    equal: float  # its value where there is nothing gained

    def rows(self, x: Tensor, first: int) -> Tensor:
        """What it takes of the samples x (B, *D), whose first has this number, (B, ...)."""

    def estimate(self, rows: Tensor) -> Estimate:
        """The number, of the rows of many samples, with its standard error."""

    def compared(self, rows: Tensor, others: Tensor) -> Estimate:
        """The first against the second, of the same noise."""


class Distance:
    """The root mean square distance, in the model's values, from solutions `target` (N, *D) of the flow."""

    gain, equal = "ratio", 1.0

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def rows(self, x: Tensor, first: int) -> Tensor:
        """Mean squares of each sample, (B,)."""
        return (x - self.target[first : first + len(x)]).double().square().flatten(1).mean(1)

    def estimate(self, rows: Tensor) -> Estimate:
        """The root of the mean of rows; its error is that of the mean over twice the root."""
        mean = float(rows.mean())
        error = _error_of_mean(rows)
        return Estimate(math.sqrt(mean), error / (2 * math.sqrt(mean)) if mean > 0 else 0.0)

    def compared(self, rows: Tensor, others: Tensor) -> Estimate:
        """The ratio of two distances; the error of its logarithm is half that of the two means', sample by sample."""
        mean, other = float(rows.mean()), float(others.mean())
        if not (mean > 0 and other > 0):
            return Estimate(1.0 if mean == other else math.inf if mean else 0.0)
        ratio = math.sqrt(mean / other)
        return Estimate(ratio, ratio / 2 * _error_of_mean(rows / mean - others / other))


class FeatureDistance:
    """A distance of features, as KID, from those of the data.

    Args:
        features: of the model's values x (B, *D), (B, d).
        distance: of the features of samples, (N, d), with its standard error.
    """

    gain, equal = "difference", 0.0

    def __init__(self, features: Callable[[Tensor], Tensor], distance: Callable[[Tensor], Estimate]) -> None:
        self._features, self._distance = features, distance

    def rows(self, x: Tensor, first: int) -> Tensor:
        """The features, (B, d)."""
        return self._features(x)

    def estimate(self, rows: Tensor) -> Estimate:
        return self._distance(rows)

    def compared(self, rows: Tensor, others: Tensor) -> Estimate:
        """The difference. Its error is as if the two were of different noise, which is too large rather than small."""
        first, second = self.estimate(rows), self.estimate(others)
        return Estimate(first.value - second.value, math.hypot(first.standard_error, second.standard_error))


def kid_of(trained: Trained, spec: str | None, batch: int) -> tuple[FeatureDistance, dict[str, Any]]:
    """KID in features of a run, from those of its training data, and what a report says of both.

    Raises:
        ValueError: for features that the run cannot have.
    """
    run, dataset = trained.run, trained.run.dataset("train")
    chosen = np.random.default_rng(0).permutation(len(dataset))[:REFERENCES]
    reference = tensor(dataset.at(np.sort(chosen)).x[:])
    features = open_features(spec, StoredAs(run.data.shape, run.data.levels), run.device, trained).fitted(reference)

    def of_stored(stored: Tensor) -> Tensor:
        return torch.cat([features(part)["features"] for part in torch.split(stored, batch)])

    target = of_stored(reference)
    measure = FeatureDistance(lambda x: of_stored(run.to_stored(x)), lambda rows: kernel_distance(rows, target))
    return measure, {"features": features.recipe, "data": f"{len(chosen)} of {dataset.name} ({dataset.split})"}


def _error_of_mean(rows: Tensor) -> float:
    return float(rows.std()) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
