"""Sets of images: a plain code of the first ones, and bits back for the others, on one stack."""

import math
from dataclasses import dataclass

import numpy as np

from scorefield.compression.bits_back import BitsBack
from scorefield.compression.plain import Adaptive
from scorefield.compression.stack import OTHER_BITS, Integers, Stack, Words
from scorefield.likelihood.progress import ShareDone, part_of
from scorefield.sde_lib.denoiser import Cond, take_rows


@dataclass(frozen=True)
class Coded:
    """A set of images as bits.

    Args:
        words: the stack.
        plain: images that are coded without the model; their bits are drawn from by the others.
        batches: the numbers of images that were coded together, after those.
        plain_bits: on the stack after the plain images.
        bits: on the stack at the end.
    """

    words: Words
    plain: int
    batches: tuple[int, ...]
    plain_bits: int = 0
    bits: int = 0

    @property
    def net_bits(self) -> float:
        """Of one image that bits-back codes, in the mean: without the initial bits. NaN if there is none."""
        return (self.bits - self.plain_bits) / sum(self.batches) if self.batches else math.nan


@dataclass(frozen=True)
class Codec:
    """A lossless code of sets of images by a denoiser.

    Bits-back needs bits to draw from before the first image. These are the code of the first images, which a plain
    code writes. The next images are coded one at a time. As the stack grows, more are coded together: one evaluation of
    the denoiser serves them all, and the bits that are on loan are still there.

    Args:
        coder: of images that are coded together.
        batch: the most that are.
    """

    coder: BitsBack
    batch: int = 64

    def compress(self, k: Integers, cond: Cond | None = None, progress: ShareDone = None) -> Coded:
        """The bits of levels k (N, *D), with the conditioning of each in `cond` (N, ...)."""
        count, cond, stack = len(k), cond or {}, Stack()
        plain = self._push_plain(stack, k)
        plain_bits, batches, first = stack.bits, list[int](), plain
        while first < count:
            size = min(self._most(stack.bits), count - first)
            rows = slice(first, first + size)
            self.coder.push(stack, k[rows], take_rows(cond, rows, count), _part(progress, rows, count))
            batches.append(size)
            first += size
        if progress is not None:
            progress(1.0)
        return Coded(stack.words, plain, tuple(batches), plain_bits, stack.bits)

    def decompress(self, coded: Coded, cond: Cond | None = None, progress: ShareDone = None) -> Integers:
        """The levels (N, *D), from words, plain and batches.

        Raises:
            ValueError: if the bits are not of this model: something is left on the stack, or a draw is impossible.
        """
        count, stack, parts = coded.plain + sum(coded.batches), Stack(coded.words), list[Integers]()
        last, cond = count, cond or {}
        for size in reversed(coded.batches):
            rows = slice(last - size, last)
            done = slice(count - last, count - last + size)
            parts.append(self.coder.pop(stack, size, take_rows(cond, rows, count), _part(progress, done, count)))
            last -= size
        if coded.plain:
            images = self._adaptive().pop(stack, coded.plain)
            parts.append(images.reshape(-1, *self.coder.shape))
        if len(stack.words):
            raise ValueError(OTHER_BITS)
        if progress is not None:
            progress(1.0)
        return np.concatenate(parts[::-1])

    def _push_plain(self, stack: Stack, k: Integers) -> int:
        """Code images without the model until their bits suffice for the next; the number of these images."""
        adaptive, images, every, bits = self._adaptive(), list[Integers](), [], 0.0
        while len(images) < len(k) and bits < self._initial_bits(1):
            images.append(k[len(images)].reshape(-1))
            of_image, rows = adaptive.rows(images[-1])
            every.append(rows)
            bits += of_image
        adaptive.push(stack, images, every)
        return len(images)

    def _adaptive(self) -> Adaptive:
        return Adaptive(self.coder.decoder.levels, self.coder.shape)

    def _most(self, bits: int) -> int:
        """Images that can be coded together with these bits on the stack, at least one."""
        size = 1
        while size < self.batch and self._initial_bits(size + 1) <= bits:
            size += 1
        return size

    def _initial_bits(self, size: int) -> float:
        """Bits that are on loan while images are coded together, with room for the spread of what is drawn."""
        dims = size * math.prod(self.coder.shape)
        return dims * self.coder.chain.initial_bits + 4 * math.sqrt(2 * dims) + 64


def _part(progress: ShareDone, rows: slice, count: int) -> ShareDone:
    return part_of(progress, rows.start / count, rows.stop / count)
