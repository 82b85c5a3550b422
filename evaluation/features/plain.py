"""Features without a network: the values themselves, and their principal components."""

import math

import numpy as np
import torch
from torch import Tensor

from scorefield.evaluation.features.base import Features, StoredAs, evenly_spaced, fingerprint_of

MOST = 4096  # dimensions of pixels: a covariance of float64 has 128 MiB then
FITTED = 10_000  # reference samples, evenly spaced, that principal components are fitted to


class Pixels(Features):
    """The stored values, flattened: levels as 0 .. 1, continuous values unchanged.

    Args:
        stored_as: how samples are stored.

    Raises:
        ValueError: for samples of more than 4,096 values.
    """

    def __init__(self, stored_as: StoredAs) -> None:
        if (dims := math.prod(stored_as.shape)) > MOST:
            raise ValueError(
                f"expected samples of at most {MOST:,} values for features pixels, got {dims:,}: take --features=pca"
            )
        self.stored_as = stored_as

    @property
    def recipe(self) -> str:
        return f"pixels, {math.prod(self.stored_as.shape)} values"

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({}, "pixels", self.stored_as)

    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        return {"features": self.stored_as.unit(stored).flatten(1).cpu()}


class PrincipalComponents(Features):
    """Coordinates along the principal components of reference samples, which are not whitened.

    The sign of a component is such that its largest entry is positive.

    Args:
        stored_as: how samples are stored.
        components: how many; all, where samples have fewer values.

    Raises:
        ValueError: for less than one component, or when it is called before it is fitted.
    """

    def __init__(self, stored_as: StoredAs, components: int = 64) -> None:
        if components < 1:
            raise ValueError(f"expected at least 1 of components for features pca, got {components}: take 64")
        self.stored_as = stored_as
        self.components = min(components, math.prod(stored_as.shape))
        self._mean: Tensor | None = None
        self._axes = torch.empty(0)
        self._reference = ""

    def fitted(self, reference: Tensor) -> "PrincipalComponents":
        """The components of at most 10,000 reference samples, evenly spaced among these.

        Raises:
            ValueError: for fewer samples than components.
        """
        if len(reference) < self.components:
            raise ValueError(
                f"expected at least {self.components} reference samples for features pca, got {len(reference)}: give "
                f"more, or take --features=pca:components={max(len(reference) // 2, 1)}"
            )
        from sklearn.decomposition import PCA  # a second, which only these features need

        x = self.stored_as.unit(evenly_spaced(reference, FITTED)).flatten(1).cpu().double().numpy()
        found = PCA(self.components, random_state=0).fit(x)
        axes = found.components_
        largest = np.abs(axes).argmax(1)
        axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
        result = PrincipalComponents(self.stored_as, self.components)
        result._mean, result._axes = torch.from_numpy(found.mean_), torch.from_numpy(axes)
        result._reference = fingerprint_of({"reference": torch.from_numpy(x)})
        return result

    @property
    def recipe(self) -> str:
        return f"{self.components} principal components of the reference ({self._reference[:8]})"

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({}, "pca", self.stored_as, self.components, self._reference)

    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        if self._mean is None:
            raise ValueError(
                "expected principal components that are fitted, got them without reference samples: call "
                "fitted(reference) first, or compare with a data set, not with a file of statistics"
            )
        x = self.stored_as.unit(stored).flatten(1).cpu().double()
        return {"features": ((x - self._mean) @ self._axes.T).float()}
