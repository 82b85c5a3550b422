"""Features of a network with fixed random weights, for data of any shape."""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scorefield.evaluation.features.base import Features, StoredAs, fingerprint_of

SMALLEST = 4  # side of a map that is not halved again
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


class Random(Features):
    """Means over places of the maps of a convolutional network with fixed random weights.

    Each layer is  h <- relu(W * h),  with kernels of 3 along each axis and zeros around, and every second halves the
    size, down to 4. The means of all layers are the features. They are for images (C, H, W), series (C, L) and volumes
    (C, D, H, W) of any size and number of channels; for vectors (D,) the layers are fully connected.

    Weights are uniform with variance 2 / (fan in), in float64 from NumPy's RandomState, so that they are the same on
    every machine. Levels go in as -1 .. 1, continuous values with mean 0 and deviation 1 over the reference.

    Args:
        stored_as: how samples are stored.
        device: that computes.
        seed: of the weights.
        width: maps of the first layer, doubled at each halving up to four times.

    Raises:
        ValueError: for samples of more than four axes, less than one map, or continuous values before they are fitted.
    """

    def __init__(self, stored_as: StoredAs, device: torch.device | str = "cpu", seed: int = 0, width: int = 64) -> None:
        if not 1 <= len(stored_as.shape) <= 1 + len(CONVOLUTIONS) or width < 1:
            raise ValueError(
                f"expected vectors, series, images or volumes and a width of at least 1 for features random, got "
                f"{stored_as.shape} and {width}: take --features=pca"
            )
        self.stored_as, self.device, self.seed, self.width = stored_as, torch.device(device), seed, width
        self.centre, self.scale = (0.5, 0.5) if stored_as.levels is not None else (0.0, 0.0)
        draws = np.random.RandomState(seed)
        digest = hashlib.sha256()
        self.weights: list[Tensor] = []
        before = stored_as.shape[0]
        for width_of_layer in self._widths():
            fan_in = before * 3 ** len(stored_as.shape[1:])
            bound = math.sqrt(6 / fan_in)
            shape = (width_of_layer, before, *(3,) * len(stored_as.shape[1:]))
            weight = torch.from_numpy(draws.random_sample(shape) * (2 * bound) - bound)
            digest.update(weight.numpy().tobytes())
            self.weights.append(weight.float().to(self.device))
            before = width_of_layer
        self.weights_sha256 = digest.hexdigest()

    def _widths(self) -> list[int]:
        """Of the layers: two at each size."""
        halvings = self._halvings()
        return [self.width * min(2**level, 4) for level in range(halvings + 1) for _ in range(2)]

    def _halvings(self) -> int:
        places = self.stored_as.shape[1:]
        if not places:
            return 1
        return max(0, min(3, int(math.log2(max(min(places) // SMALLEST, 1)))))

    def fitted(self, reference: Tensor) -> "Random":
        """For continuous values, their mean and deviation over the reference; levels need nothing."""
        if self.stored_as.levels is not None:
            return self
        unit = self.stored_as.unit(reference).double()
        result = Random(self.stored_as, self.device, self.seed, self.width)
        result.centre, result.scale = float(unit.mean()), float(unit.std(correction=0)) or 1.0
        return result

    @property
    def recipe(self) -> str:
        size = sum(len(weight) for weight in self.weights)
        return f"random network, seed {self.seed}, {len(self.weights)} layers, {size} features"

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({}, "random", self.stored_as, self.weights_sha256, self.centre, self.scale)

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        if not self.scale:
            raise ValueError(
                "expected random features that are fitted, got continuous values of unknown mean and deviation: call "
                "fitted(reference) first, or compare with a data set, not with a file of statistics"
            )
        h = (self.stored_as.unit(stored).to(self.device) - self.centre) / self.scale
        parts = []
        for number, weight in enumerate(self.weights):
            halves = number > 0 and number % 2 == 0
            if h.ndim > 2:
                h = CONVOLUTIONS[h.ndim - 3](h, weight, stride=2 if halves else 1, padding=1).relu()
            else:
                h = functional.linear(h, weight).relu()
            parts.append(h.flatten(2).mean(2) if h.ndim > 2 else h)
        return {"features": torch.cat(parts, 1).cpu()}
