"""A plain adaptive code of levels, without the model: its bits are what the first draws from the stack need."""

import math

import numpy as np

from scorefield.compression.stack import Floats, Integers, Stack

GROUPS = 4  # of levels, by which a context tells neighbours apart
TRUST = 4.0  # counts at which a context weighs as much as all contexts together
FORGET = 0.98  # weight of the past in the choice between the predictions
LEARN = 0.02  # weight of the newest value in the spread about the neighbours
LARGEST = 2**23  # probabilities of an image; in a larger one all levels are taken as equally likely


class Adaptive:
    """A code that learns from the images before, for a few small images.

    Three predictions of the next level are mixed by how well each has done. These are the frequencies of levels, their
    frequencies after neighbours that are alike, and a Laplace distribution about these (to the left and above).

    Args:
        levels: the number of values of a dimension.
        shape: of an image, *D.
    """

    def __init__(self, levels: int, shape: tuple[int, ...]) -> None:
        self.levels, self.size = levels, math.prod(shape)
        self._width, self._height = shape[-1], shape[-2] if len(shape) > 1 else 1
        self._learns = self.size * levels <= LARGEST
        if self._learns:
            self._counts = np.full(levels, 1 / levels)
            self._contexts = np.zeros((GROUPS**2, levels))
            self._ladder = np.arange(levels)
            self._weights, self._spread = np.full(3, 1 / 3), levels / 8

    def rows(self, image: Integers) -> tuple[float, Floats]:
        """The bits of the next image, flat, and the probabilities (n, levels) of its values."""
        if not self._learns:
            return self.size * math.log2(self.levels), np.empty((0, self.levels))
        rows = np.empty((self.size, self.levels))
        for i in range(self.size):
            rows[i] = self._next(image, i)
        return float(-np.log2(rows[np.arange(self.size), image]).sum()), rows

    def push(self, stack: Stack, images: list[Integers], rows: list[Floats]) -> None:
        """Code images, flat, by the `rows` of each, so that they are popped in their order."""
        for image, p in zip(reversed(images), reversed(rows), strict=True):
            if self._learns:
                stack.push_rows(image, np.zeros(self.size, np.int64), p, self.levels)
            else:
                stack.push_uniform(image, self.levels)

    def pop(self, stack: Stack, count: int) -> Integers:
        """The levels (count, n) of the images that were pushed."""
        images = np.zeros((count, self.size), np.int64)
        for image in images:
            if not self._learns:
                image[:] = stack.pop_uniform(self.size, self.levels)
                continue
            for i in range(self.size):
                p = self._predict(image, i)
                image[i] = stack.pop_rows(np.zeros(1, np.int64), p[None], self.levels)[0]
                self._learn(int(image[i]))
        return images

    def _next(self, image: Integers, i: int) -> Floats:
        p = self._predict(image, i)
        self._learn(int(image[i]))
        return p

    def _predict(self, image: Integers, i: int) -> Floats:
        left, above = self._neighbours(image, i)
        self._middle = (left + above) / 2
        self._context = self._contexts[self._group(left) * GROUPS + self._group(above)]
        often = self._counts / self._counts.sum()
        alike = (self._context + TRUST * often) / (self._context.sum() + TRUST)
        near = np.exp(-np.abs(self._ladder - self._middle) / self._spread) + 1e-6
        self._predictions = np.stack([often, alike, near / near.sum()])
        p: Floats = self._weights @ self._predictions
        p /= p.sum()
        return p

    def _learn(self, level: int) -> None:
        weights = self._weights**FORGET * self._predictions[:, level] + 1e-6
        self._weights = weights / weights.sum()
        self._counts[level] += 1
        self._context[level] += 1
        self._spread += LEARN * (max(abs(level - self._middle), 0.3) - self._spread)

    def _neighbours(self, image: Integers, i: int) -> tuple[int, int]:
        """The levels to the left and above; one that is missing is like the other, and both like the last value."""
        left = int(image[i - 1]) if i % self._width else None
        above = int(image[i - self._width]) if i // self._width % self._height else None
        if left is None and above is None:
            left = int(image[i - 1]) if i else self.levels // 2
        left = above if left is None else left
        assert left is not None
        return left, left if above is None else above

    def _group(self, level: int) -> int:
        """The lowest level alone, and three equal parts of the others."""
        return 0 if level == 0 else 1 + level * (GROUPS - 1) // self.levels
