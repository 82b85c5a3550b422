"""Bits back through a chain: images on a stack, and from it again."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scorefield.compression.chain import Array, Chain
from scorefield.compression.levels import ByLevel
from scorefield.compression.stack import Integers, Stack
from scorefield.likelihood.progress import ShareDone
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, predict_noise, predict_x0

SPAN = 8  # bits of each dimension that are scrambled before a level is drawn


@dataclass(frozen=True)
class BitsBack:
    """A lossless code of levels by a denoiser, whose mean length is the chain's variational bound.

    Args:
        denoiser: E[x0 | x]. It must give the same bits when it is called again with the same batch.
        chain: the steps.
        decoder: p(x | z_0).
        shape: of an image, *D.
        dtype: in which the denoiser is called.
        device: of the denoiser.
    """

    denoiser: DenoiserLike
    chain: Chain
    decoder: ByLevel
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def push(self, stack: Stack, k: Integers, cond: Cond | None = None, progress: ShareDone = None) -> None:
        """Code the levels k (B, *D) of some images together.

        It pops z_0 ~ q(z_0 | x) and pushes x by p(x | z_0). For i = 1 .. T it pops z_i ~ q(z_i | z_{i-1}) and pushes
        z_{i-1} by p(z_{i-1} | z_i). At last it pushes z_T by p(z_T).
        """
        chain, width = self.chain, self.chain.width
        model = BoundDenoiser(self.denoiser, cond, len(k))
        flat, mean = k.reshape(-1), self._first_mean(k.reshape(-1))
        stack.scramble(0, SPAN * flat.size)
        z = stack.pop_draw(mean / width[0], chain.sigma[0] / width[0])
        self.decoder.push(stack, flat, self._seen(model, z))
        for i in range(chain.steps):
            stack.scramble(i + 1, SPAN * z.size)
            up = stack.pop_draw(z * (chain.up[i] * width[i] / width[i + 1]), chain.up_std[i] / width[i + 1])
            stack.push_normal(z, self._down(model, i, up) / width[i], chain.down_std[i] / width[i])
            z = up
            if progress is not None:
                progress((i + 1) / chain.steps)
        stack.push_normal(z, np.zeros(z.shape), chain.sigma[-1] / width[-1])

    def pop(self, stack: Stack, count: int, cond: Cond | None = None, progress: ShareDone = None) -> Integers:
        """The levels (count, *D) of the images that were pushed last; the stack is then as it was before them."""
        chain, width = self.chain, self.chain.width
        model = BoundDenoiser(self.denoiser, cond, count)
        z = stack.pop_normal(np.zeros(count * int(np.prod(self.shape))), chain.sigma[-1] / width[-1])
        for i in reversed(range(chain.steps)):
            down = stack.pop_normal(self._down(model, i, z) / width[i], chain.down_std[i] / width[i])
            stack.push_draw(z, down * (chain.up[i] * width[i] / width[i + 1]), chain.up_std[i] / width[i + 1])
            stack.scramble(i + 1, SPAN * z.size)
            z = down
            if progress is not None:
                progress((chain.steps - i) / chain.steps)
        flat = self.decoder.pop(stack, self._seen(model, z))
        stack.push_draw(z, self._first_mean(flat) / width[0], chain.sigma[0] / width[0])
        stack.scramble(0, SPAN * flat.size)
        return flat.reshape(count, *self.shape)

    def _first_mean(self, flat: Integers) -> Array:
        mean: Array = self.chain.alpha[0] * self.decoder.centre(flat)
        return mean

    def _tensors(self, count: int, z: Integers, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """The point of a level as the denoiser takes it, with its scales."""
        x = torch.from_numpy(z * self.chain.width[i]).reshape(count, *self.shape).to(self.device, self.dtype)
        both = (self.chain.alpha[i], self.chain.sigma[i])
        alpha, sigma = (torch.full((count,), scale, dtype=torch.float64) for scale in both)
        return x, alpha.to(self.device), sigma.to(self.device)

    def _down(self, model: BoundDenoiser, i: int, z: Integers) -> Array:
        """The mean of p(z_i | z_{i+1}), flat."""
        with torch.no_grad():
            eps = predict_noise(model, *self._tensors(model.batch, z, i + 1)).double().cpu().numpy().reshape(-1)
        mean: Array = (z * self.chain.width[i + 1] - self.chain.of_eps[i] * eps) / self.chain.up[i]
        return mean

    def _seen(self, model: BoundDenoiser, z: Integers) -> Array:
        """What the decoder is given: z_0 in units of the data, or the denoiser's estimate of x."""
        if not self.decoder.calls_denoiser:
            seen: Array = z * (self.chain.width[0] / self.chain.alpha[0])
            return seen
        with torch.no_grad():
            estimate: Array = predict_x0(model, *self._tensors(model.batch, z, 0)).double().cpu().numpy().reshape(-1)
        return estimate
