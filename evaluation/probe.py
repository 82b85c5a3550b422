"""A classifier of real digits, to judge samples."""

import warnings

import numpy as np
from numpy.typing import NDArray


class DigitProbe:
    """A support-vector classifier of 8x8 digits, trained on real ones.

    Its probabilities are libsvm's (Wu, Lin and Weng 2004). For a blurred digit they are far lower than those of
    scikit-learn's newer calibration.

    Args:
        images: (N, 1, 8, 8), integers 0 .. 16.
        labels: (N,).
    """

    def __init__(self, images: NDArray[np.integer], labels: NDArray[np.int64]) -> None:
        from sklearn.svm import SVC  # here, because the import takes a second

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `probability` parameter", category=FutureWarning)
            self._classifier = SVC(C=10.0, gamma=0.001, probability=True, random_state=0).fit(_flat(images), labels)

    def accuracy(self, images: NDArray[np.integer], labels: NDArray[np.int64]) -> float:
        """The share of images whose class is their label."""
        return float(self._classifier.score(_flat(images), labels))

    def confidence(self, images: NDArray[np.integer]) -> float:
        """The mean over images of the top class's probability."""
        return float(self._classifier.predict_proba(_flat(images)).max(1).mean())

    def shares(self, images: NDArray[np.integer]) -> NDArray[np.float64]:
        """The share of images in each class, (10,)."""
        return np.bincount(self.classes(images), minlength=10) / len(images)

    def classes(self, images: NDArray[np.integer]) -> NDArray[np.int64]:
        """The class of each image, (N,)."""
        return np.asarray(self._classifier.predict(_flat(images)), np.int64)


def _flat(images: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.asarray(images, np.float64).reshape(len(images), -1)
