"""A stack of bits with the coders that bits-back needs: Gaussians on integers, rows of probabilities, plain numbers."""

import math

import numpy as np
from constriction import stream
from numpy.typing import NDArray

TAILS = 8.0  # standard deviations of a Gaussian that have symbols; numbers beyond are escaped
ESCAPE = 2.0**-20  # probability of an integer outside a row
DIGIT = 16  # bits of a plain number that are coded at once
LONGEST = 62  # bits of an escaped number
OTHER_BITS = "expected bits that were written by this model and the same arithmetic, got others: use the same machine"
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint32]


class Stack:
    """The last number that was pushed is popped first. Pushing what was popped restores the stack to the bit.

    Duda 2013, "Asymmetric numeral systems"; the coder is that of `constriction`. All arrays are flat.

    Args:
        words: of a stack that was written before, or any random bits; empty by default.

    Raises:
        ValueError: if the last word is zero, which no stack has.
    """

    def __init__(self, words: Words | None = None) -> None:
        self._coder = stream.stack.AnsCoder(*(() if words is None else (np.ascontiguousarray(words, np.uint32),)))

    @property
    def bits(self) -> int:
        """On the stack now."""
        return int(self._coder.num_valid_bits())

    @property
    def words(self) -> Words:
        """The stack as 32-bit words, (n,)."""
        words: Words = self._coder.get_compressed()
        return words

    def scramble(self, key: int, bits: float) -> None:
        """Flip random bits of at least the top `bits` of the stack; the same call flips them back.

        What was just pushed would otherwise decide what is popped next, number by number. Then the noise of a level
        would depend on the image, and the length would exceed the bound.
        """
        words = self.words
        count = min(len(words) - 1, math.ceil(bits / 32) + 2)  # the top word stays: it must not become zero
        if count > 0:
            flips = np.random.Philox(key=key).random_raw(count)[::-1].astype(np.uint32)
            words[-1 - count : -1] ^= flips
            self._coder = stream.stack.AnsCoder(words)

    def pop_draw(self, mean: Floats, std: float) -> Integers:
        """Integers that the bits of the stack draw from N(mean, std^2), cut off at 8 standard deviations."""
        base = _nearest(mean)
        family, parameters = _normal(mean - base, std)
        k: Integers = base + self._coder.decode(family, *parameters)
        return k

    def push_draw(self, k: Integers, mean: Floats, std: float) -> None:
        """The inverse of `pop_draw`.

        Raises:
            ValueError: for an integer that it never draws: the model is another, or its arithmetic is.
        """
        base = _nearest(mean)
        family, parameters = _normal(mean - base, std)
        if bool((np.abs(k - base) > _edge(std)).any()):
            raise ValueError(OTHER_BITS)
        self._coder.encode_reverse((k - base).astype(np.int32), family, *parameters)

    def push_normal(self, k: Integers, mean: Floats, std: float) -> None:
        """Code integers by N(mean, std^2). Those beyond 8 standard deviations cost some 30 bits and more."""
        base = _nearest(mean)
        family, parameters = _normal(mean - base, std)
        edge, away = _edge(std), k - base
        for i in np.flatnonzero(np.abs(away) >= edge)[::-1]:
            self._push_natural(int(abs(away[i])) - edge)
        self._coder.encode_reverse(np.clip(away, -edge, edge).astype(np.int32), family, *parameters)

    def pop_normal(self, mean: Floats, std: float) -> Integers:
        """The inverse of `push_normal`."""
        base = _nearest(mean)
        family, parameters = _normal(mean - base, std)
        edge, away = _edge(std), self._coder.decode(family, *parameters).astype(np.int64)
        for i in np.flatnonzero(np.abs(away) >= edge):
            away[i] += np.sign(away[i]) * self._pop_natural()
        k: Integers = base + away
        return k

    def push_rows(self, k: Integers, first: Integers, p: Floats, levels: int) -> None:
        """Code levels k (n,) by probabilities p (n, w) of the w levels from `first` (n,) on, w below 2^20.

        A level outside of its row costs 20 bits and log2(levels).
        """
        at, rows = k - first, _with_escape(p)
        outside = (at < 0) | (at >= p.shape[1])
        for level in k[outside][::-1]:
            self._push_uniform(int(level), levels)
        at = np.where(outside, p.shape[1], at).astype(np.int32)
        self._coder.encode_reverse(at, stream.model.Categorical(perfect=False), rows)

    def pop_rows(self, first: Integers, p: Floats, levels: int) -> Integers:
        """The inverse of `push_rows`."""
        at = self._coder.decode(stream.model.Categorical(perfect=False), _with_escape(p)).astype(np.int64)
        k: Integers = first + at
        for i in np.flatnonzero(at == p.shape[1]):
            k[i] = self._pop_uniform(levels)
        return k

    def push_uniform(self, k: Integers, levels: int) -> None:
        """Code levels (n,) that are equally likely."""
        for level in k[::-1].tolist():
            self._push_uniform(level, levels)

    def pop_uniform(self, count: int, levels: int) -> Integers:
        """The inverse of `push_uniform`, of this many levels."""
        return np.array([self._pop_uniform(levels) for _ in range(count)], np.int64)

    def _push_natural(self, number: int) -> None:
        """A number from 0 on: its length in bits, then its bits (Elias 1975, the gamma code)."""
        length = (number + 1).bit_length()
        self._push_uniform(number + 1 - (1 << (length - 1)), 1 << (length - 1))
        self._push_uniform(length - 1, LONGEST)

    def _pop_natural(self) -> int:
        length = self._pop_uniform(LONGEST)
        return self._pop_uniform(1 << length) + (1 << length) - 1

    def _push_uniform(self, number: int, count: int) -> None:
        """A number of 0 .. count - 1, in digits of 16 bits."""
        while True:
            size = min(count, 1 << DIGIT)
            if size > 1:
                self._coder.encode_reverse(number % size, stream.model.Uniform(size))
            number, count = number // size, -(-count // size)
            if count <= 1:
                return

    def _pop_uniform(self, count: int) -> int:
        sizes = []
        while count > 1:
            sizes.append(min(count, 1 << DIGIT))
            count = -(-count // sizes[-1])
        number = 0
        for size in reversed(sizes):
            number = number * size + int(self._coder.decode(stream.model.Uniform(size)))
        return number


def _nearest(mean: Floats) -> Integers:
    """The integers nearest to the means: only their differences are coded, so that a row of symbols stays short.

    Raises:
        ValueError: for a mean that is not finite, or beyond 2^60.
    """
    if not bool((np.abs(mean) < 2.0**60).all()):
        raise ValueError(
            "expected finite predictions of the denoiser, got NaN, infinity, or numbers far beyond the noise: train "
            "further, or take another --checkpoint"
        )
    return np.floor(mean + 0.5).astype(np.int64)


def _edge(std: float) -> int:
    return math.ceil(TAILS * std) + 1


def _normal(mean: Floats, std: float) -> tuple[stream.model.QuantizedGaussian, tuple[Floats, Floats]]:
    """The distribution of integers that has this mean and deviation.

    A Gaussian that is integrated over unit cells has a variance that is larger by 1/12 (Sheppard 1898). Without this
    the noise would grow at each level.
    """
    edge = _edge(std)
    narrower = math.sqrt(max(std**2 - 1 / 12, 1e-3))
    return stream.model.QuantizedGaussian(-edge, edge), (mean, np.full_like(mean, narrower))


def _with_escape(p: Floats) -> Floats:
    rows = np.empty((len(p), p.shape[1] + 1))
    rows[:, :-1], rows[:, -1] = p, ESCAPE
    return rows
