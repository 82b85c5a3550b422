"""Twice the size and half of it, by a finite impulse response (FIR) filter or a convolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate, pad

NEAREST = (1.0, 1.0)
# Of what is copied to 2x2 pixels a 3x3 correlation is a transposed one of stride 2, 4x4: which rows each row adds up.
_ROWS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
_ADDED_UP = torch.kron(_ROWS, _ROWS)


class Fir(nn.Module):
    """Resampling by 2 with a separable filter, and zeros beyond the border (Zhang 2019; Karras et al. 2020, StyleGAN2).

    The filter (1, 1) is the nearest neighbour upwards and the mean of 2x2 pixels downwards; (1, 3, 3, 1) is NCSN++'s.
    One depthwise convolution; constant images stay what they are, but for the border.

    Args:
        kernel: the filter along one axis, of any scale, even in length.
        up: to twice the size; otherwise to half.
    """

    weight: Tensor

    def __init__(self, kernel: Sequence[float] = NEAREST, up: bool = False) -> None:
        super().__init__()
        if len(kernel) < 2 or len(kernel) % 2:
            raise ValueError(f"expected a filter of even length, got {tuple(kernel)}")
        self.up, self.nearest = up, len(kernel) == 2 and kernel[0] == kernel[1]
        # A convolution with the filter, where torch's is a correlation; a transposed correlation is a convolution.
        line = torch.tensor([float(k) for k in (kernel if up else reversed(tuple(kernel)))])
        gain = 4.0 if up else 1.0
        self.register_buffer("weight", gain * torch.outer(line, line) / line.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.nearest:
            return interpolate(x, scale_factor=2.0, mode="nearest") if self.up else avg_pool2d(x, 2)
        channels, length = x.shape[1], len(self.weight)
        weight = self.weight.to(x.dtype).expand(channels, 1, length, length)
        resample = conv_transpose2d if self.up else conv2d
        return resample(x, weight, stride=2, padding=length // 2 - 1, groups=channels)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2.

    Args:
        channels: in.
        channels_out: by default the same.
        fir: filter first, to be free of aliasing (NCSN++).
        symmetric: pad on all sides, rather than below and to the right as DDPM does.
        bias: of the convolution.
    """

    def __init__(
        self,
        channels: int,
        channels_out: int | None = None,
        fir: Sequence[float] | None = None,
        symmetric: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels_out or channels, 3, stride=2, bias=bias)
        self.padding = (1, 1, 1, 1) if symmetric else (0, 1, 0, 1)
        # What the filter needs beyond the border, and the convolution beyond that.
        self.blur = None if fir is None else _Blur(fir)
        self.margin = 0 if fir is None else len(fir) // 2

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(pad(x, self.padding) if self.blur is None else self.blur(x, padding=self.margin))
        return halved


class Upsample(nn.Module):
    """Twice the size by the nearest neighbour, then a 3x3 convolution.

    Args:
        channels: in.
        channels_out: by default the same.
        fir: a filter after the convolution of the spread-out pixels, in the place of the nearest neighbour (NCSN++).
        bias: of the convolution.
    """

    added_up: Tensor

    def __init__(
        self,
        channels: int,
        channels_out: int | None = None,
        fir: Sequence[float] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels_out or channels, 3, padding=1, bias=bias)
        self.blur = None if fir is None else _Blur(fir, gain=4.0)
        self.register_buffer("added_up", _ADDED_UP.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.blur is None:
            # 4 products for a value where 3x3 has 9.
            weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1, 2)
            kernel = (self.added_up.to(weight.dtype) @ weight).view(len(weight), 4, 4, -1).permute(3, 0, 1, 2)
            return conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        spread = conv_transpose2d(x, self.conv.weight.flip(2, 3).transpose(0, 1), stride=2)
        output: Tensor = self.blur(spread, padding=1)
        return output if self.conv.bias is None else output + self.conv.bias[:, None, None]


class _Blur(nn.Module):
    """The filter at full size."""

    weight: Tensor

    def __init__(self, kernel: Sequence[float], gain: float = 1.0) -> None:
        super().__init__()
        line = torch.tensor([float(k) for k in reversed(tuple(kernel))])
        self.register_buffer("weight", gain * torch.outer(line, line) / line.sum() ** 2, persistent=False)

    def forward(self, x: Tensor, padding: int) -> Tensor:
        channels, length = x.shape[1], len(self.weight)
        return conv2d(x, self.weight.to(x.dtype).expand(channels, 1, length, length), padding=padding, groups=channels)
