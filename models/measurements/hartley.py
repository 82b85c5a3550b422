"""The Hartley transform, which is the Fourier transform of real numbers as real numbers, and filters."""

import torch
from torch import Tensor

PIXELS = (-2, -1)


def hartley(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Re F x - Im F x  for the unitary Fourier transform F, of the shape of x.

    It is orthogonal and symmetric, so it is its own inverse (Bracewell 1983).
    """
    transformed: Tensor = torch.fft.fftn(x, dim=dims, norm="ortho")
    real, imaginary = transformed.real, transformed.imag
    return real - imaginary


def filtered(x: Tensor, transfer: Tensor) -> Tensor:
    """The images times a transfer function in the Fourier domain, F^-1 (transfer F x), which is real.

    Real products and the complex transform round alike wherever a sample stands in its batch. Complex products and the
    inverse real transform do not.
    """
    z = torch.fft.fftn(x, dim=PIXELS)
    z = torch.complex(z.real * transfer.real - z.imag * transfer.imag, z.real * transfer.imag + z.imag * transfer.real)
    images: Tensor = torch.fft.ifftn(z, dim=PIXELS).real
    return images
